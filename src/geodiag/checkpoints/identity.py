"""What tells a checkpoint from another version of it, so that a log can be resumed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geodiag.blocks import to_numpy


def identity(source: Any) -> str:
    """A text that is another one where a checkpoint has changed; "" where that cannot be told.

    Of a file its size and when it was written, of a directory those of all its files, of a point in
    memory a hash of its arrays.

    >>> identity({"w": [1.0, 2.0]}) == identity({"w": [1.0, 2.0]}) != identity({"w": [1.0, 2.5]})
    True
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        known = [p.stat() for p in files]
        written = max((x.st_mtime_ns for x in known), default=0)
        return f"{sum(x.st_size for x in known)} bytes, {written}"
    found = hashlib.blake2b(digest_size=12)
    try:
        _add(source, found)
    except Exception:  # an object whose arrays are not found, or that cannot be arrays of NumPy
        return ""
    return f"hash {found.hexdigest()}"


def _add(x: Any, found: Any) -> None:
    if isinstance(x, Mapping):
        for name in sorted(x, key=str):
            found.update(f"{name}: ".encode())
            _add(x[name], found)
    elif isinstance(x, (list, tuple)):
        found.update(f"{len(x)} in {type(x).__name__}".encode())
        for each in x:
            _add(each, found)
    elif x is None or isinstance(x, (bool, int, float, str)):
        found.update(repr(x).encode())
    else:
        array = to_numpy(x.detach() if hasattr(x, "detach") else x)
        if array.dtype == object:
            raise TypeError
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
