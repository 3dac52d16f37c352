"""What data look like, in a few words, for the header of a log. No loader is asked for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 8  # entries of a batch that are described


def description(data: Any) -> str:
    """The shapes of a batch; of batches their number too, and the first where there is a list.

    >>> import numpy as np
    >>> description((np.ones((64, 6)), np.ones(64, dtype=int)))
    '64×6 float64, 64 int64'
    >>> description([np.ones((8, 2))] * 3)
    '3 batches, the first: 8×2 float64'
    """
    if isinstance(data, list) and data:
        count = f"{len(data)} batches, the first: " if len(data) > 1 else ""
        return count + description(data[0])
    if isinstance(data, tuple):
        return ", ".join(description(x) for x in data[:MOST]) + (", …" if len(data) > MOST else "")
    if isinstance(data, Mapping):
        named = [f"{name}: {description(x)}" for name, x in list(data.items())[:MOST]]
        return ", ".join(named) + (", …" if len(data) > MOST else "")
    shape, dtype = getattr(data, "shape", None), getattr(data, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        size = "×".join(str(int(n)) for n in shape) or "scalar"
        return f"{size} {str(dtype).removeprefix('torch.')}"
    if data is None:
        return ""
    if isinstance(data, (bool, int, float, str, bytes)):
        return type(data).__name__
    try:
        return f"{type(data).__name__} of {len(data)}"
    except Exception:  # it has no length, or one that is not known
        return type(data).__name__
