"""Hessian-vector products by differences of gradients, with a step that the products choose."""

from __future__ import annotations

import math
from collections.abc import Callable

from geodiag.blocks import Blocks, epsilon, norm2, subtract
from geodiag.oracles.wrappers import finite_difference_hvp

# From this relative rounding on, a step is looked for: finer gradients leave room for a poor one.
COARSE = 1e-9
FINER = 4.0  # from one step tried to the next
TRIES = 5
# A difference between two steps that shrinks by less is rounding; truncation shrinks by FINER².
SHRINKS = 0.5
Gradient = Callable[[Blocks], Blocks]


class Differences:
    """∇²L(w) d at one point, by central differences of gradients: two of them for each product.

    The step of :func:`finite_difference_hvp` suits losses whose curvature varies over distances of
    the parameters' own size. Where gradients are rounded to single precision, others lose digits
    to it (normalisation layers after small weights), so the first product tries finer steps, until
    the difference between two of them stops shrinking; two gradients for each.

    The gradient as a function of the parameters is an argument of each product, and not kept: it
    would keep the oracle that it belongs to.

    Args:
        point: the parameters.
        eps: the relative rounding of the gradients, where it is coarser than the point's.
    """

    def __init__(self, point: Blocks, eps: float = 0.0) -> None:
        self._point, self._eps = point, max(eps, epsilon(point))
        self._coarse = self._eps > COARSE
        self._factor: float | None = None if self._coarse else 1.0

    def hvp(self, gradient_at: Gradient, d: Blocks) -> Blocks:
        """∇²L(w) d."""
        if self._factor is None and float(norm2(d)) > 0.0:
            self._factor = self._search(gradient_at, d)
        return self._at(gradient_at, d, self._factor or 1.0)

    def again(self, gradient_at: Gradient, d: Blocks) -> Blocks | None:
        """The same with half the step: what differs is the error of the two, for the most part.

        None where gradients are finer than single precision.
        """
        return self._at(gradient_at, d, 0.5 * (self._factor or 1.0)) if self._coarse else None

    def _at(self, gradient_at: Gradient, d: Blocks, factor: float) -> Blocks:
        return finite_difference_hvp(gradient_at, self._point, d, self._eps, factor)

    def _search(self, gradient_at: Gradient, d: Blocks) -> float:
        enough = 10 * self._eps ** (2 / 3)
        factor, product, before = 1.0, self._at(gradient_at, d, 1.0), math.inf
        for _ in range(TRIES):
            finer = self._at(gradient_at, d, factor / FINER)
            change, size = float(norm2(subtract(finer, product))), float(norm2(finer))
            if not change < SHRINKS * before:  # rounding, or not finite
                return factor
            factor, product, before = factor / FINER, finer, change
            if change <= enough * size:
                break
        return factor
