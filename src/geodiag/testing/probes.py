"""Directions to probe with, and comparisons up to rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    array_namespace,
    epsilon,
    is_array,
    map_blocks,
    namespace,
    to_numpy,
    zeros_like,
)
from geodiag.core.spaces import Space
from geodiag.core.validation import is_mapping_of_names, is_real, is_whole
from geodiag.errors import ArgumentError, GeodiagError, NonFiniteError, ShapeError, shown


def require_blocks(example: Any, error: type[GeodiagError]) -> Blocks:
    """``example`` as blocks of one real floating dtype of at least 32 bits."""
    do = 'pass a dict of arrays, e.g. {"W": np.ones((3, 4)), "b": np.ones(3)}'
    if not isinstance(example, Mapping) or not example or not all(map(is_array, example.values())):
        raise error("the example must be blocks (a dict of arrays)", got=shown(example), do=do)
    if not is_mapping_of_names(example) or not all(map(is_real, example.values())):
        raise error("the example must be named arrays of real numbers", got=shown(example), do=do)
    blocks = dict(example)
    dtypes = {x.dtype for x in blocks.values()}
    try:
        xp = namespace(blocks)
    except TypeError as e:
        raise error("the example must be of one framework", got=shown(e), do=do) from e
    dtype = next(iter(dtypes))
    if len(dtypes) > 1 or not xp.isdtype(dtype, "real floating") or xp.finfo(dtype).bits < 32:
        raise error(
            "the example must have one real floating dtype of at least 32 bits",
            got=", ".join(sorted(map(str, dtypes))),
            do=do,
        )
    return blocks


def require_seed(seed: Any) -> None:
    """Raise an ArgumentError if ``seed`` is not an integer of at least 0."""
    if not is_whole(seed) or seed < 0:
        raise ArgumentError("seed= must be an integer of at least 0", got=shown(seed))


def directions(space: Space, rng: np.random.Generator, count: int = 6) -> list[Blocks]:
    """Nonzero probes: dense, signed, sparse, of one tensor, and every coordinate (at most 24)."""
    names = [name for name in space.names if space.size_of(name)]
    dense = [space.random(rng) for _ in range(count)]
    signed = [map_blocks(namespace(d).sign, d) for d in dense[:2]]
    found = [*dense, *signed]
    for d in dense[:2]:
        keep = {n: space.asarray(rng.random(space.shapes[n]) < 0.3) for n in space.names}
        found.append(map_blocks(lambda x, k: x * k, d, keep))
        found += [zeros_like(d) | {name: d[name]} for name in names[:4]]
    entries = [(n, i) for n in names for i in range(space.size_of(n))]
    rng.shuffle(entries)
    found += [coordinate(space, name, int(i)) for name, i in entries[:24]]
    return [d for d in found if largest(d) > 0.0]


def coordinate(space: Space, name: str, i: int) -> Blocks:
    """The unit vector of entry ``i`` of one tensor."""
    host = {n: np.zeros(space.shapes[n]) for n in space.names}
    host[name].reshape(-1)[i] = 1.0
    return {n: space.asarray(x) for n, x in host.items()}


def rounding(space: Space, example: Blocks) -> float:
    """A relative tolerance for sums over all n entries, products and singular values.

    The rounding of a sum of n terms grows like √n·ε (random signs; Higham, Accuracy and Stability
    of Numerical Algorithms, §4.2), and a singular value decomposition keeps to a modest multiple of
    ε; 100 covers the multiple.
    """
    return 100.0 * math.sqrt(max(1, space.size)) * epsilon(example)


def largest(d: Blocks) -> float:
    """max |d_i| as a Python float."""
    return max((float(namespace(d).max(abs(x))) for x in d.values() if 0 not in x.shape), default=0)


def scalar(x: Any, like: Array, what: str, error: type[GeodiagError]) -> float:
    """``x`` as a float, if it is a finite 0-d array of the dtype of ``like``."""
    if not is_array(x) or tuple(x.shape) != () or x.dtype != like.dtype:
        shape = f" of shape {tuple(x.shape)} and dtype {x.dtype}" if is_array(x) else ""
        raise error(
            f"{what} must be a 0-d array of dtype {like.dtype}",
            got=f"{type(x).__name__}{shape}",
            do="return e.g. xp.sum(...) or xp.max(...) of the arrays, not a Python number",
        )
    value = float(x)
    if not math.isfinite(value):
        raise _non_finite(error)(f"{what} is not finite", got=value)
    return value


def host(d: Blocks) -> dict[str, Any]:
    """Copies of the arrays in host memory."""
    return {name: to_numpy(x) for name, x in d.items()}


def same_bits(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two host copies are equal entry by entry."""
    return all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)


def check_arrays(got: Blocks, example: Blocks, what: str, error: type[GeodiagError]) -> None:
    """Check namespace, dtype and finite entries; names and shapes are checked elsewhere."""
    for name, x in got.items():
        xp = array_namespace(example[name])
        if not is_array(x) or array_namespace(x) is not xp or x.dtype != example[name].dtype:
            raise error(
                f"{what} must keep the arrays' framework and dtype at {name!r}",
                got=f"{type(x).__name__} of dtype {getattr(x, 'dtype', None)}",
                do=f"compute with the array namespace of the input ({example[name].dtype})",
            )
        if not bool(xp.all(xp.isfinite(x))):
            raise _non_finite(error)(f"{what} is not finite at {name!r}", got="NaN or infinity")


def _non_finite(error: type[GeodiagError]) -> type[GeodiagError]:
    """NaN from a norm breaks its contract; NaN from a loss is a NonFiniteError."""
    return NonFiniteError if error is ShapeError else error
