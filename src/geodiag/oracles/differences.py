"""Hessian-vector products from gradients, and products to judge others by.

finite_difference_hvp   a central difference of gradients
Differences             the same at one point, with a step size that is found from the products
jittered_hvp            a product with other rounding errors, to estimate these
same_loss               whether rounding explains how far two losses differ
"""

from __future__ import annotations

import math
from collections.abc import Callable

from geodiag.blocks import (
    Blocks,
    axpy,
    divide,
    epsilon,
    largest,
    map_blocks,
    norm2,
    scale,
    subtract,
)

# With gradients of a larger relative rounding error than this, the step size is searched for: finer
# gradients leave digits to spare for a poor one.
COARSE = 1e-9
REFINEMENT = 4.0  # from one step size tried to the next
TRIES = 5
# Truncation shrinks by REFINEMENT² from one step size to the next. A difference between two
# products that shrinks by less than this is due to rounding.
SHRINKS = 0.5
# The largest entry of the direction in a jittered product. No power of two: scaling by one would
# leave the rounding as it was.
PEAK = 1.37
# Squares beyond these lose digits, or everything, in float32.
TINY, HUGE = 1e-30, 1e30
UNEXPLAINED = 16.0  # machine epsilons of a loss, beyond which rounding explains no difference
Gradient = Callable[[Blocks], Blocks]


class Differences:
    """∇²L(w) d at one point, by central differences of gradients: two of them for each product.

    The step size of :func:`finite_difference_hvp` suits losses whose curvature varies over
    distances of the parameters' own size. In single precision others lose digits to it
    (normalisation layers after small weights). There the first product tries smaller step sizes,
    until the difference between two products stops shrinking; each costs two gradients.

    The gradient, as a function of the parameters, is an argument of each product. Kept here, it
    would keep the oracle that it belongs to alive.

    Args:
        point: the parameters.
        eps: the relative rounding error of the gradients, where it is coarser than the point's.
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

    def independent_hvp(self, gradient_at: Gradient, d: Blocks) -> Blocks | None:
        """The product with half the step size: it differs by about the error of the two.

        That is of rounding, of kinks within the step, and where the gradient jumps at the point, or
        has an infinite slope there, a third or more of the product itself.
        """
        return self._at(gradient_at, d, 0.5 * (self._factor or 1.0))

    def _at(self, gradient_at: Gradient, d: Blocks, factor: float) -> Blocks:
        return finite_difference_hvp(gradient_at, self._point, d, self._eps, factor)

    def _search(self, gradient_at: Gradient, d: Blocks) -> float:
        tolerance = 10 * self._eps ** (2 / 3)
        factor, product, before = 1.0, self._at(gradient_at, d, 1.0), math.inf
        for _ in range(TRIES):
            finer = self._at(gradient_at, d, factor / REFINEMENT)
            change, size = float(norm2(subtract(finer, product))), float(norm2(finer))
            if not change < SHRINKS * before:  # rounding, or not finite
                return factor
            factor, product, before = factor / REFINEMENT, finer, change
            if change <= tolerance * size:
                break
        return factor


def finite_difference_hvp(
    gradient_at: Gradient, point: Blocks, d: Blocks, eps: float = 0.0, factor: float = 1.0
) -> Blocks:
    """∇²L(w) d by a central difference of gradients (two gradient evaluations).

    The step size h balances the truncation error, O(h²), against the gradient's rounding, O(ε/h):
    ε^{1/3} relative to the parameters, both in their length and in their largest entry, whichever
    is smaller. Expect a relative error of about ε^{2/3}, 4e-11 in float64 and 2e-5 in float32, for
    losses whose curvature varies over distances of the parameters' own size.

    Args:
        gradient_at: ∇L as a function of the parameters.
        point: the parameters w.
        d: the direction.
        eps: the relative rounding error of the gradients, where it is coarser than the point's.
        factor: multiplies the step size.

    Examples:
        >>> cubic = lambda w: {"x": w["x"] ** 2}  # the gradient of Σ x³/3; ∇²L = diag(2x)
        >>> point, d = {"x": np.array([1.0, 3.0])}, {"x": np.array([1.0, 1.0])}
        >>> finite_difference_hvp(cubic, point, d)["x"].round(6)
        array([2., 6.])
    """
    length, peak = float(norm2(d)), float(largest(d))
    if peak == 0.0:
        return scale(d, 0.0)
    if not TINY < peak * peak < HUGE and math.isfinite(peak):  # lengths over- or underflow
        unit = divide(d, peak)
        return scale(finite_difference_hvp(gradient_at, point, unit, eps, factor), peak)
    reach = min((1.0 + float(norm2(point))) / length, (1.0 + float(largest(point))) / peak)
    h = max(epsilon(point), eps) ** (1.0 / 3.0) * reach * factor
    forward, backward = gradient_at(axpy(h, d, point)), gradient_at(axpy(-h, d, point))
    return scale(subtract(forward, backward), 0.5 / h)


def same_loss(coarse: float, fine: float, eps: float) -> bool:
    """Whether rounding, in a precision of machine epsilon ``eps``, explains two losses at w.

    A loss may depend on its dtype by its own code, as one with ``finfo(x.dtype).eps`` does. False
    where one is not finite.
    """
    moved = abs(fine - coarse)
    return math.isfinite(moved) and moved <= UNEXPLAINED * eps * max(abs(fine), abs(coarse))


def jittered_hvp(
    point: Blocks, noise: Blocks, eps: float, d: Blocks, hvp: Callable[[Blocks, Blocks], Blocks]
) -> Blocks:
    """``hvp(point, d)`` with other rounding errors: it differs by about their size.

    The parameters are moved by half a relative spacing ``eps`` times ``noise`` (standard normal),
    so that the forward pass rounds in another way too. The direction is scaled, for the product, to
    a largest entry of order one, at which small numbers do not underflow.
    """
    moved = map_blocks(lambda w, z: w * (1 + 0.5 * eps * z), point, noise)
    c = PEAK / (float(largest(d)) or 1.0)
    return scale(hvp(moved, scale(d, c)), 1 / c)
