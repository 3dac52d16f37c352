"""A loss of fewer than 32 bits, computed in float32: the same function of wider arrays."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax

from geodiag.blocks import Array
from geodiag_jax.derivatives import Arrays, Inputs, StaticCall, StaticLoss, value_and_gradient
from geodiag_jax.inspection import inner_jaxprs, structure_of
from geodiag_jax.precision import SINGLE
from geodiag_jax.pytree import Parameters, wide

# Those that make keys are the same in every dtype; the derivative of a sample draws nothing.
DRAWS = re.compile("random_(?!gamma_grad)|rng_|threefry|philox")


class AnotherLossError(Exception):
    """A loss is not the same function in float32."""


def in_float32(
    static: StaticLoss, parameters: Parameters, call: StaticCall, at: Inputs
) -> tuple[Array, Arrays]:
    """L and ∇L of one batch, with all arrays in 32 bits; ``static`` and ``parameters`` are so.

    AnotherLossError where it casts to fewer bits itself, and where it draws random numbers: the
    same key gives other numbers in another dtype. Looked for once for each shape of a batch.
    """
    other = StaticCall(static, call.batch)
    widened = Inputs(parameters.point, parameters.fixed, tuple(map(wide, at.batch)))
    shapes = jax.tree_util.tree_map(jax.api_util.shaped_abstractify, (at, widened))
    if not _same(call, shapes[0], other, shapes[1]):
        raise AnotherLossError
    found: tuple[Array, Arrays] = value_and_gradient(other, widened)
    return found


@functools.lru_cache(maxsize=256)
def _same(call: StaticCall, shapes: Inputs, other: StaticCall, widened: Inputs) -> bool:
    try:
        coarse = structure_of(other, widened).precision > SINGLE
        return not coarse and _draws(call, shapes) == _draws(other, widened)
    except Exception:  # a loss may reject other dtypes with any
        return False


def _draws(call: StaticCall, shapes: Inputs) -> list[str]:
    return list(_random(jax.make_jaxpr(call.evaluate)(shapes).jaxpr))


def _random(jaxpr: Any) -> Iterator[str]:
    """What a function draws: the shapes and the dtypes of random bits and of samples."""
    for equation in jaxpr.eqns:
        if DRAWS.match(equation.primitive.name):
            yield str([v.aval for v in equation.outvars])
        for inner in inner_jaxprs(list(equation.params.values())):
            yield from _random(inner)
