"""The slope and the curvature along a step of the optimizer, at the point it started from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from geodiag.blocks import (
    Array,
    Blocks,
    all_finite,
    array_namespace,
    divide,
    dot,
    subtract,
    where,
    zeros_like,
)
from geodiag.oracles.base import Oracle
from geodiag.solvers import ravel
from geodiag.solvers.program import NormProgram


class AlongStep(NamedTuple):
    """What was measured along a step s = w⁺ − w, at w."""

    unit: Blocks  # s/‖s‖; zero for a step that is zero or not finite
    image: Blocks  # H times that
    numbers: Array  # ‖s‖, NaN or infinite where s is not finite; ⟨∇L, s⟩; ⟨s, Hs⟩/‖s‖²
    num_hvps: Array | int


class StepCurvature(NormProgram):
    """The length of a step, and the slope and the curvature along it; takes one HVP."""

    def __call__(self, oracle: Oracle, here: Blocks, there: Blocks, gradient: Blocks) -> AlongStep:
        norm, view = self.norm, ravel.of(oracle)
        hvp: Callable[[Blocks], Blocks] = oracle.hvp
        if view:
            hvp, norm = view.of(hvp), ravel.norm_on(view, norm)
            here, there, gradient = view.flat(here), view.flat(there), view.flat(gradient)
        step = subtract(there, here)
        slope = dot(gradient, step)
        xp, nothing = array_namespace(slope), zeros_like(step)
        if norm.entrywise:  # its value is not finite where the step is not
            length = norm.value(step)
            finite = xp.isfinite(length)
        else:
            finite = all_finite(step)
            length = norm.value(where(finite, step, nothing))
            length = xp.where(finite, length, length + float("nan"))
        moves = finite & (length > 0)
        unit = where(moves, divide(step, xp.where(moves, length, xp.ones_like(length))), nothing)
        image = hvp(unit)
        numbers = xp.stack([length, slope, dot(unit, image)])
        if view:
            unit, image = view.full(unit), view.full(image)
        return AlongStep(unit, image, numbers, 1)
