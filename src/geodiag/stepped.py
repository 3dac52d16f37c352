"""What a step of the optimizer looks like from where it began, as one program."""

from __future__ import annotations

from typing import NamedTuple

from geodiag.blocks import (
    Array,
    Blocks,
    all_finite,
    array_namespace,
    dot,
    scale,
    subtract,
    where,
    zeros_like,
)
from geodiag.estimators import flat
from geodiag.estimators.program import NormProgram, spent
from geodiag.oracles.base import Oracle


class Stepped(NamedTuple):
    """A step s = w⁺ − w, measured at w."""

    unit: Blocks  # s/‖s‖; zero for a step that is zero or not finite
    numbers: Array  # ‖s‖, NaN where s is not finite; ⟨∇L, s⟩; ⟨s, Hs⟩/‖s‖²
    num_hvps: Array


class Step(NormProgram):
    """The length of a step, the slope and the curvature along it, at one product."""

    def __call__(self, oracle: Oracle, here: Blocks, there: Blocks, gradient: Blocks) -> Stepped:
        oracle, norm, view = flat.view(oracle, self.norm)
        if view:
            here, there, gradient = view.flat(here), view.flat(there), view.flat(gradient)
        step = subtract(there, here)
        finite = all_finite(step)
        step = where(finite, step, zeros_like(step))
        length = norm.value(step)
        xp = array_namespace(length)
        unit = scale(step, 1 / xp.where(length > 0, length, xp.ones_like(length)))
        curvature = dot(unit, oracle.hvp(unit))
        length = xp.where(finite, length, length + float("nan"))
        numbers = xp.stack([length, dot(gradient, step), curvature])
        return Stepped(view.full(unit) if view else unit, numbers, spent(unit, 1))
