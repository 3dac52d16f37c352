"""The first and the last program of a measurement.

SteepestDirection   lmo(∇L), by which the norm's contract is checked
Certify             the value ⟨d, Hd⟩ at a witness d, from a fresh product
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    all_finite,
    array_namespace,
    check_like,
    dot,
    finite_or_zero,
    largest,
    map_blocks,
    positive,
    scale,
    subtract,
)
from geodiag.errors import NormError
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.solvers.program import NormProgram, spent


class Steepest(NamedTuple):
    """The direction of steepest ascent in a norm."""

    steepest: Blocks  # lmo(∇L)
    length: Array  # its norm
    sound: Array  # whether the direction is finite
    finite: Array  # whether the gradient is
    num_hvps: Array


class Certified(NamedTuple):
    """A witness, and what the product there says."""

    direction: Blocks  # of unit norm
    image: Blocks
    value: Array
    residual: Array | None  # absolute, for quadratic norms
    dual_norm: Array
    finite: Array
    num_hvps: Array


class SteepestDirection(NormProgram):
    """lmo(∇L), whose kind is checked; its numbers are for the host to check.

    Raises:
        NormError: the norm answers with something else than blocks and a 0-d array.
    """

    def __call__(self, oracle: Oracle, gradient: Blocks) -> Steepest:
        usable, finite = finite_or_zero(gradient)
        steepest = self.norm.lmo(usable)
        del usable  # its memory
        check_like(steepest, oracle.shapes, f"lmo(g) of {self.norm!r}", NormError)
        length = self.norm.value(steepest)
        if getattr(length, "shape", None) != () or _foreign(length, steepest):
            raise NormError(
                f"value(d) of {self.norm!r} must be a 0-d array of the framework of d",
                got=f"{type(length).__name__} of shape {getattr(length, 'shape', None)}",
                do="return e.g. xp.sum(...) or xp.max(...), not a Python number",
            )
        return Steepest(steepest, length, all_finite(steepest), finite, spent(gradient, 0))


def _foreign(x: Array, d: Blocks) -> bool:
    """Whether ``x`` is of another framework than d; NumPy's numbers are accepted with all."""
    if isinstance(x, (np.ndarray, np.generic)):
        return False
    try:
        array_namespace(next(iter(d.values())), x)
    except TypeError:
        return True
    return False


class Certify(NormProgram):
    """The witness scaled to unit norm, and a fresh product there, unless ``image`` is one."""

    def __call__(
        self,
        oracle: Oracle,
        direction: Blocks,
        image: Blocks | None,
        gradient: Blocks,
        steepest: Blocks,
    ) -> Certified:
        length = self.norm.value(direction)
        direction = scale(direction, 1 / length)
        asked = image is None
        image = oracle.hvp(direction) if image is None else scale(image, 1 / length)
        asks = spent(direction, int(asked))
        return evaluate_witness(self.norm, direction, image, gradient, steepest, asks)


def evaluate_witness(
    norm: Norm, direction: Blocks, image: Blocks, gradient: Blocks, steepest: Blocks, asks: Array
) -> Certified:
    """The value and the residual of a witness of unit norm, from the product there."""
    value = dot(direction, image)
    residual = None
    if isinstance(norm, QuadraticNorm):  # ‖P⁻¹Hd − S·d‖_P
        off = subtract(norm.inverse_metric(image), scale(direction, value))
        residual = safe_value(norm, off)
    dual_norm, finite = dot(gradient, steepest), all_finite(image)
    return Certified(direction, image, value, residual, dual_norm, finite, asks)


def safe_value(norm: Norm, d: Blocks) -> Array:
    """‖d‖, with d scaled by its largest entry so that no square under- or overflows."""
    peak = positive(largest(d))
    # By the inverse of the root, twice: the inverse of the largest floats may be flushed to zero.
    inverse = 1 / array_namespace(peak).sqrt(peak)
    return norm.value(map_blocks(lambda x: x * inverse * inverse, d)) * peak
