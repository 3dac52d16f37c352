"""One product ahead of the last witness: what following S along a run takes at the least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from geodiag.blocks import (
    Array,
    Blocks,
    all_finite,
    array_namespace,
    axpy,
    divide,
    dot,
    where,
    zeros_like,
)
from geodiag.norms.base import QuadraticNorm
from geodiag.norms.quadratic import L2
from geodiag.norms.vector import Linf
from geodiag.oracles.base import Oracle
from geodiag.solvers import ravel
from geodiag.solvers.program import NormProgram


class Looked(NamedTuple):
    """A direction of unit norm, and what the product there says."""

    direction: Blocks
    ahead: Blocks  # where to look next; of any length
    numbers: Array  # ⟨d, Hd⟩; the residual, absolute, NaN where there is none; ‖∇L‖*
    num_hvps: Array | int


@dataclass(frozen=True)
class Look(NormProgram):
    """The product at a direction d, and lmo(Hd), where the next measurement begins.

    Repeated, with H moving slowly in between, it is the ascent d ← lmo(Hd) (the power method, in a
    quadratic norm) at one product a measurement.
    """

    def __call__(self, oracle: Oracle, direction: Blocks, gradient: Blocks) -> Looked:
        norm, view = self.norm, None
        hvp: Callable[[Blocks], Blocks] = oracle.hvp
        if isinstance(norm, (L2, Linf)):  # others would be asked on tensors all the same
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
            ahead, residual = norm.lmo(_guarded(image)[0]), value * float("nan")
            gradient, finite = _guarded(gradient)
            dual_norm = norm.dual(gradient)
            dual_norm = xp.where(finite, dual_norm, dual_norm + float("nan"))
        if view:
            direction, ahead = view.full(direction), view.full(ahead)
        return Looked(direction, ahead, xp.stack([value, residual, dual_norm]), 1)


def _guarded(g: Blocks) -> tuple[Blocks, Array]:
    """Zero where g is not finite (a factorisation of NaN may raise, or not end); whether it is."""
    finite = all_finite(g)
    return where(finite, g, zeros_like(g)), finite
