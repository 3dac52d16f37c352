"""A loss of fewer than 32 bits, computed in float32: the same function of wider arrays."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax

from geodiag_jax.derivatives import Inputs, StaticCall
from geodiag_jax.inspection import inner_jaxprs, structure_of
from geodiag_jax.precision import SINGLE


def same_in_float32(narrow: StaticCall, at: Inputs, wide: StaticCall, wide_at: Inputs) -> bool:
    """Whether a loss is computed in 32 bits throughout where its arrays are in 32 bits.

    It is not where it casts to fewer itself, and may be another one where it draws random numbers:
    the same key gives other numbers in another dtype.
    """
    shapes = jax.tree_util.tree_map(jax.api_util.shaped_abstractify, (at, wide_at))
    return _same(narrow, shapes[0], wide, shapes[1])


@functools.lru_cache(maxsize=256)
def _same(narrow: StaticCall, shapes: Inputs, wide: StaticCall, wide_shapes: Inputs) -> bool:
    try:
        coarse = structure_of(wide, wide_shapes).precision > SINGLE
        return not coarse and _draws(narrow, shapes) == _draws(wide, wide_shapes)
    except Exception:  # a loss may reject other dtypes with any
        return False


def _draws(call: StaticCall, shapes: Inputs) -> list[str]:
    return list(_random(jax.make_jaxpr(call.evaluate)(shapes).jaxpr))


def _random(jaxpr: Any) -> Iterator[str]:
    """The shapes of random bits that a function draws."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("random_bits", "threefry2x32", "rng_bit_generator"):
            yield str([v.aval for v in equation.outvars])
        for inner in inner_jaxprs(list(equation.params.values())):
            yield from _random(inner)
