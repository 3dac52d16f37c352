"""One step of the power method from the last witness: the cheapest update of S along a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from geodiag.blocks import Array, Blocks, array_namespace, axpy, divide, dot, finite_or_zero
from geodiag.norms.base import QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.solvers import ravel
from geodiag.solvers.program import NormProgram


class PowerIterate(NamedTuple):
    """A direction of unit norm, and what the product there says."""

    direction: Blocks
    ahead: Blocks  # the next direction, of any length
    numbers: Array  # ⟨d, Hd⟩; the residual, absolute, NaN where there is none; ‖∇L‖*
    num_hvps: Array | int


@dataclass(frozen=True)
class PowerStep(NormProgram):
    """The product at a direction d, and lmo(Hd), from which the next measurement starts.

    Repeated while H changes slowly, it is the ascent d ← lmo(Hd) at one product a measurement; in a
    quadratic norm that is the power method.
    """

    def __call__(self, oracle: Oracle, direction: Blocks, gradient: Blocks) -> PowerIterate:
        norm, view = self.norm, None
        hvp: Callable[[Blocks], Blocks] = oracle.hvp
        if norm.entrywise:  # the others need the tensors in any case
            view = ravel.of(oracle)
        if view:
            hvp, direction, gradient = view.of(hvp), view.flat(direction), view.flat(gradient)
        direction = divide(direction, norm.value(direction))
        image = hvp(direction)
        value = dot(direction, image)
        xp = array_namespace(value)
        if isinstance(norm, QuadraticNorm):
            ahead = norm.inverse_metric(image)
            residual = norm.value(axpy(-value, direction, ahead))
            dual_norm = norm.dual(gradient)
        elif view:
            ahead, residual = norm.lmo(image), value * float("nan")
            dual_norm = norm.dual(gradient)
        else:
            ahead, residual = norm.lmo(finite_or_zero(image)[0]), value * float("nan")
            gradient, finite = finite_or_zero(gradient)
            dual_norm = norm.dual(gradient)
            dual_norm = xp.where(finite, dual_norm, dual_norm + float("nan"))
        if view:
            direction, ahead = view.full(direction), view.full(ahead)
        return PowerIterate(direction, ahead, xp.stack([value, residual, dual_norm]), 1)
