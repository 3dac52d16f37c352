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


class Differences:
    """∇²L(w) d at one point, by central differences of gradients: two of them for each product.

    The step of :func:`finite_difference_hvp` suits losses whose curvature varies over distances of
    the parameters' own size. Where gradients are rounded to single precision, others lose digits
    to it (normalisation layers after small weights), so the first product tries finer steps, until
    the difference between two of them stops shrinking; two gradients for each.

    Args:
        gradient_at: the gradient at other parameters.
        point: the parameters.
        eps: the relative rounding of the gradients, where it is coarser than the point's.
    """

    def __init__(
        self, gradient_at: Callable[[Blocks], Blocks], point: Blocks, eps: float = 0.0
    ) -> None:
        self._gradient_at, self._point = gradient_at, point
        self._eps = max(eps, epsilon(point))
        self._factor: float | None = None if self._eps > COARSE else 1.0

    @property
    def coarse(self) -> bool:
        """Whether the gradients are rounded to single precision, or worse."""
        return self._eps > COARSE

    def hvp(self, d: Blocks) -> Blocks:
        """∇²L(w) d."""
        if self._factor is None and float(norm2(d)) > 0.0:
            self._factor = self._search(d)
        return self._at(d, self._factor or 1.0)

    def again(self, d: Blocks) -> Blocks:
        """The same with half the step: what differs is the error of the two, for the most part."""
        return self._at(d, 0.5 * (self._factor or 1.0))

    def _at(self, d: Blocks, factor: float) -> Blocks:
        return finite_difference_hvp(self._gradient_at, self._point, d, self._eps, factor)

    def _search(self, d: Blocks) -> float:
        enough = 10 * self._eps ** (2 / 3)
        factor, product, before = 1.0, self._at(d, 1.0), math.inf
        for _ in range(TRIES):
            finer = self._at(d, factor / FINER)
            change, size = float(norm2(subtract(finer, product))), float(norm2(finer))
            if not change < SHRINKS * before:  # rounding, or not finite
                return factor
            factor, product, before = factor / FINER, finer, change
            if change <= enough * size:
                break
        return factor
