"""What every measurement begins and ends with, as programs: the norm's first answers, and the fresh
product at the witness that certifies the value."""

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
    map_blocks,
    namespace,
    scale,
    subtract,
    where,
    zeros_like,
)
from geodiag.errors import NormError
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.solvers.program import NormProgram, spent


class Opening(NamedTuple):
    """The norm's first answers."""

    steepest: Blocks  # lmo(∇L)
    length: Array  # its norm
    sound: Array  # whether it is finite
    finite: Array  # whether the gradient is
    num_hvps: Array


class Closing(NamedTuple):
    """What is said of a witness."""

    direction: Blocks  # of unit norm
    image: Blocks
    value: Array
    residual: Array | None  # absolute, for quadratic norms
    dual_norm: Array
    finite: Array
    num_hvps: Array


class Open(NormProgram):
    """The program that a measurement begins with."""

    def __call__(self, oracle: Oracle, gradient: Blocks) -> Opening:
        finite = all_finite(gradient)
        # A factorisation of NaN may raise, or not end.
        steepest = self.norm.lmo(where(finite, gradient, zeros_like(gradient)))
        check_like(steepest, oracle.shapes, f"lmo(g) of {self.norm!r}", NormError)
        length = self.norm.value(steepest)
        if getattr(length, "shape", None) != () or _foreign(length, steepest):
            raise NormError(
                f"value(d) of {self.norm!r} must be a 0-d array of the framework of d",
                got=f"{type(length).__name__} of shape {getattr(length, 'shape', None)}",
                do="return e.g. xp.sum(...) or xp.max(...), not a Python number",
            )
        return Opening(steepest, length, all_finite(steepest), finite, spent(gradient, 0))


def _foreign(x: Array, d: Blocks) -> bool:
    """Whether ``x`` is of another framework than d; NumPy's numbers go with all of them."""
    if isinstance(x, (np.ndarray, np.generic)):
        return False
    try:
        array_namespace(next(iter(d.values())), x)
    except TypeError:
        return True
    return False


class Close(NormProgram):
    """The program that a measurement ends with: a fresh product at the witness."""

    def __call__(
        self,
        oracle: Oracle,
        direction: Blocks,
        image: Blocks | None,
        gradient: Blocks,
        steepest: Blocks,
    ) -> Closing:
        length = self.norm.value(direction)
        direction = scale(direction, 1 / length)
        asked = image is None
        image = oracle.hvp(direction) if image is None else scale(image, 1 / length)
        asks = spent(direction, int(asked))
        return closing(self.norm, direction, image, gradient, steepest, asks)


def closing(
    norm: Norm, direction: Blocks, image: Blocks, gradient: Blocks, steepest: Blocks, asks: Array
) -> Closing:
    """What is said of a witness of unit norm; ``image``: the product at it."""
    value = dot(direction, image)
    residual = None
    if isinstance(norm, QuadraticNorm):  # ‖P⁻¹Hd − S·d‖_P
        off = subtract(norm.inverse_metric(image), scale(direction, value))
        residual = safe_value(norm, off)
    dual_norm, finite = dot(gradient, steepest), all_finite(image)
    return Closing(direction, image, value, residual, dual_norm, finite, asks)


def safe_value(norm: Norm, d: Blocks) -> Array:
    """‖d‖ by way of d over its largest entry, so that no square under- or overflows."""
    xp = namespace(d)
    peak = xp.max(xp.stack([xp.max(xp.abs(x)) for x in d.values() if 0 not in x.shape]))
    peak = xp.where(peak > 0, peak, xp.ones_like(peak))
    # Of the root, twice: compilers multiply by inverses, and those of the largest floats may count
    # as zero.
    inverse = 1 / xp.sqrt(peak)
    return norm.value(map_blocks(lambda x: x * inverse * inverse, d)) * peak
