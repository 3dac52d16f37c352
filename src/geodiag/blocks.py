"""Arithmetic on *blocks*: ``dict[str, Array]``, one named array per parameter tensor.

This is the only vector type of the core. All arrays of one blocks value share an array namespace, a
device and a real floating dtype of at least 32 bits. Nothing here (or above it) knows which
framework the arrays belong to: ``array_api_compat`` finds the namespace from the arrays themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from geodiag.errors import GeodiagError, ShapeError

Array: TypeAlias = Any
Blocks: TypeAlias = dict[str, Array]

# By the type of the arrays: small problems would spend much of their time in the look-up.
_NAMESPACES: dict[Any, Any] = {}


def namespace(blocks: Mapping[str, Array]) -> Any:
    """The array namespace (``xp``) that all arrays of ``blocks`` belong to."""
    return array_namespace(*blocks.values())


def array_namespace(*arrays: Array) -> Any:
    """The array namespace (``xp``) of ``arrays``."""
    kind = type(arrays[0]) if arrays else None
    for x in arrays:
        if type(x) is not kind:  # looked up each time, with its checks
            return array_api_compat.array_namespace(*arrays)
    found = _NAMESPACES.get(kind)
    if found is None:
        found = _NAMESPACES[kind] = array_api_compat.array_namespace(*arrays)
    return found


def is_array(x: object) -> bool:
    """Whether ``x`` is an array of any framework that the array API covers."""
    return bool(array_api_compat.is_array_api_obj(x))


def device(x: Array) -> Any:
    """The device that ``x`` lives on, for other arrays to join it; None if it is on several.

    A JAX array then has a sharding in place of a device, which is good for its own shape alone.
    """
    found = place(x)
    return None if hasattr(found, "device_set") else found


def place(x: Array) -> Any:
    """The device, or the devices and their shares, that ``x`` lives on."""
    return array_api_compat.device(x)


def map_blocks(f: Callable[..., Array], *blocks: Blocks) -> Blocks:
    """Apply ``f`` to the arrays of equal name."""
    return {name: f(*(b[name] for b in blocks)) for name in blocks[0]}


def dot(a: Blocks, b: Blocks) -> Array:
    """⟨a, b⟩ over all blocks, as a 0-d array."""
    xp = namespace(a)
    total = None
    for name, x in a.items():
        part = xp.sum(x * b[name])
        total = part if total is None else total + part
    return total


def norm2(a: Blocks) -> Array:
    """The Euclidean norm of all blocks together, as a 0-d array."""
    return namespace(a).sqrt(dot(a, a))


def scale(a: Blocks, c: Any) -> Blocks:
    """c·a."""
    return map_blocks(lambda x: x * c, a)


def divide(a: Blocks, c: Any) -> Blocks:
    """a/c."""
    return map_blocks(lambda x: x / c, a)


def axpy(c: Any, x: Blocks, y: Blocks) -> Blocks:
    """c·x + y."""
    return map_blocks(lambda u, v: u * c + v, x, y)


def add(a: Blocks, b: Blocks) -> Blocks:
    """a + b."""
    return map_blocks(lambda x, y: x + y, a, b)


def subtract(a: Blocks, b: Blocks) -> Blocks:
    """a − b."""
    return map_blocks(lambda x, y: x - y, a, b)


def where(condition: Array, a: Blocks, b: Blocks) -> Blocks:
    """``a`` if the 0-d boolean ``condition`` holds, else ``b``; stays traceable."""
    xp = namespace(a)
    return map_blocks(lambda x, y: xp.where(condition, x, y), a, b)


def zeros_like(a: Blocks) -> Blocks:
    """Zero blocks of the same names, shapes, dtype and device."""
    xp = namespace(a)
    return map_blocks(xp.zeros_like, a)


def all_finite(a: Blocks) -> Array:
    """Whether every entry is finite, as a 0-d boolean array."""
    xp = namespace(a)
    result = None
    for x in a.values():
        part = xp.all(xp.isfinite(x))
        result = part if result is None else result & part
    return result


def largest(a: Blocks) -> Array:
    """The largest absolute entry, as a 0-d array; 0 where there is no entry."""
    xp = namespace(a)
    peaks = [xp.sum(x) if 0 in x.shape else xp.max(xp.abs(x)) for x in a.values()]
    return peaks[0] if len(peaks) == 1 else xp.max(xp.stack(peaks))


def positive(x: Array) -> Array:
    """``x`` where it is above 0, else 1: to divide by."""
    xp = array_namespace(x)
    return xp.where(x > 0, x, xp.ones_like(x))


def finite_or_zero(a: Blocks) -> tuple[Blocks, Array]:
    """``a``, or zeros if an entry is not finite, and whether all are.

    For matrix decompositions, which may raise or hang on NaN.
    """
    finite = all_finite(a)
    return where(finite, a, zeros_like(a)), finite


def size(a: Blocks) -> int:
    """The number of entries over all blocks."""
    return sum(math.prod(x.shape) for x in a.values())


def epsilon(a: Blocks) -> float:
    """The machine epsilon of the blocks' dtype."""
    return epsilon_of(next(iter(a.values())))


def epsilon_of(x: Array) -> float:
    """The machine epsilon of an array's dtype."""
    return float(array_namespace(x).finfo(x.dtype).eps)


def flatten(a: Blocks) -> Array:
    """All blocks as one vector, row-major, in dict order."""
    return join_tensors([*a.values()], [math.prod(x.shape) for x in a.values()], ())


def unflatten(vector: Array, shapes: Mapping[str, Sequence[int]]) -> Blocks:
    """Inverse of :func:`flatten`; of each row of a matrix, stacked."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    return dict(zip(shapes, part_vector(vector, sizes, [*shapes.values()]), strict=True))


def join_tensors(tensors: Sequence[Array], sizes: Sequence[int], lead: tuple[int, ...]) -> Array:
    """Tensors of shapes (*lead, …), ``sizes`` behind ``lead``, as one of shape (*lead, n)."""
    xp = array_namespace(*tensors)
    pieces = [xp.reshape(x, (*lead, size)) for x, size in zip(tensors, sizes, strict=True)]
    return pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=-1)


def part_vector(
    vector: Array, sizes: Sequence[int], shapes: Sequence[Sequence[int]]
) -> Iterable[Array]:
    """Inverse of :func:`join_tensors`, with ``lead`` in front of all ``shapes``."""
    xp, lead, at = array_namespace(vector), tuple(vector.shape[:-1]), 0
    for n, shape in zip(sizes, shapes, strict=True):
        yield xp.reshape(vector[..., at : at + n], (*lead, *shape))
        at += n


def stack(rows: Sequence[Blocks]) -> Blocks:
    """k blocks as one with a leading axis of length k."""
    xp = namespace(rows[0])
    return map_blocks(lambda *xs: xp.stack(list(xs)), *rows)


def unstack(stacked: Blocks) -> list[Blocks]:
    """Inverse of :func:`stack`."""
    k = next(iter(stacked.values())).shape[0]
    return [{name: x[i, ...] for name, x in stacked.items()} for i in range(k)]


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """A copy of ``x`` in host memory; in float32, exactly, if NumPy does not have the dtype."""
    try:
        return np.asarray(x).copy()
    except (TypeError, ValueError):  # on an accelerator, or a strict namespace
        host = array_api_compat.to_device(x, "cpu")
    try:
        return np.from_dlpack(host).copy()
    except (RuntimeError, BufferError):  # bfloat16 of torch
        xp = array_namespace(host)
        return np.asarray(xp.astype(host, xp.float32))


def check_like(
    got: Mapping[str, Array],
    shapes: Mapping[str, Sequence[int]],
    what: str,
    error: type[GeodiagError] = ShapeError,
) -> None:
    """Raise ``error`` unless ``got`` is blocks with exactly these names and shapes."""

    def wrong(text: str, found: object) -> GeodiagError:
        do = f"return or pass a dict with exactly these names and shapes: {_describe(shapes)}"
        return error(f"{what} {text}", got=found, do=do)

    if not isinstance(got, Mapping):
        raise wrong("must be blocks (a dict of arrays)", type(got).__name__)
    if got.keys() != shapes.keys():
        missing = sorted(set(shapes) - set(got))
        extra = sorted(set(got) - set(shapes), key=repr)  # the keys may be of any type
        names = f"missing {_few(missing)}; unexpected {_few(extra)}"
        raise wrong("does not have the parameters' names", names)
    for name, shape in shapes.items():
        found = getattr(got[name], "shape", None)
        if not isinstance(found, tuple) or found != tuple(shape):
            found = found if isinstance(found, tuple) else type(got[name]).__name__
            raise wrong(f"has a wrong shape at {name!r}: expected {tuple(shape)}", found)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:4])) + (" …" if len(names) > 4 else "") if names else "none"


def _describe(shapes: Mapping[str, Sequence[int]]) -> str:
    items = [f"{name}: {tuple(shape)}" for name, shape in shapes.items()]
    return "{" + ", ".join(items[:6]) + (", …" if len(items) > 6 else "") + "}"
