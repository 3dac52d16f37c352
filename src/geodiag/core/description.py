"""What data look like, in a few words, for the header of a log. No loader is asked for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST, DEEPEST = 8, 4  # entries of a batch that are described, and containers within each other


def description(data: Any) -> str:
    """The shapes of a batch; of batches their number too, and the first where there is a list.

    >>> import numpy as np
    >>> description((np.ones((64, 6)), np.ones(64, dtype=int)))
    '64×6 float64, 64 int64'
    >>> description([np.ones((8, 2))] * 3)
    '3 batches, the first: 8×2 float64'
    """
    try:
        return _described(data, DEEPEST)
    except Exception:  # of another's object: a shape, a length or a name that cannot be had
        return type(data).__name__


def _described(data: Any, depth: int) -> str:
    """``depth``: how many containers within each other are still looked into."""
    if isinstance(data, (list, tuple, Mapping)) and depth == 0:
        return type(data).__name__
    if isinstance(data, list) and data:
        count = f"{len(data)} batches, the first: " if len(data) > 1 else ""
        return count + _described(data[0], depth - 1)
    if isinstance(data, tuple):
        found = [_described(x, depth - 1) for x in data[:MOST]]
        return ", ".join(found) + (", …" if len(data) > MOST else "")
    if isinstance(data, Mapping):
        first = list(data.items())[:MOST]
        found = [f"{name}: {_described(x, depth - 1)}" for name, x in first]
        return ", ".join(found) + (", …" if len(data) > MOST else "")
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
