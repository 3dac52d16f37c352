"""Are products the second derivative of the loss? A comparison with differences, at one point.

A derivative rule that is not the framework's own can give a gradient that is not that of the loss
(a straight-through estimator), or one that is, with a product that is not its derivative. Where the
gradient is no gradient at all, its Jacobian is not symmetric and has no largest eigenvalue in the
sense of S. A finding must show in two random directions, which move every tensor in proportion to
its own size, and exceed what doubling the step of the difference changes: kinks (ReLU) and rounding
move the difference itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from geodiag.blocks import Array, Blocks, axpy, dot, norm2, scale, size, subtract
from geodiag.oracles.base import Oracle

# How far a difference of gradients may be from the product, relative to their size: far above its
# rounding (up to 3e-3 in float32), and below what a dropped term makes.
TOLERANCE = 0.02
# The same for the slope of the loss, and the symmetry of products, which are more accurate.
FINE_TOLERANCE = 1e-3
# From here on a gradient is looked at for whether it is a rounded one, where ε allows that.
ROUNDED = 1e-5
# How far, relative to what doubling the step changes.
RESOLVED = 10.0
# The second product is asked for at so many times its direction (a power of two, which rounds the
# same), so that products which are not linear look asymmetric.
STRETCH = 1024.0


@dataclass(frozen=True)
class CrossCheck:
    """Relative differences, each None where it is not larger than its uncertainty.

    Attributes:
        product: between products and differences of the gradient.
        gradient: between the gradient and differences of the loss.
        curvature: between ⟨d, Hd⟩ and second differences of the loss, looked at where ``gradient``
            is known.
        flat: whether products vanish where ``gradient`` is known.
        asymmetry: between ⟨u, Hv⟩ and ⟨v, Hu⟩: of differences where ``product`` is known and the
            gradient is not ``replaced``, else of products.
    """

    product: float | None = None
    gradient: float | None = None
    curvature: float | None = None
    flat: bool = False
    asymmetry: float | None = None

    @property
    def replaced(self) -> bool:
        """Whether the gradient is another than that of the loss."""
        return (self.gradient or 0.0) > FINE_TOLERANCE


def cross_check(oracle: Oracle, eps: float, by_differences: bool = False) -> CrossCheck:
    """Compare the products of an oracle with differences of its gradients and losses.

    It costs two products, four gradients and four losses, and up to sixteen gradients and sixteen
    losses where something is found.

    Args:
        oracle: what answers.
        eps: the relative rounding error of the gradients.
        by_differences: whether the oracle's products are differences of gradients themselves.
    """
    u, v = _lines(oracle, eps)
    product = _in_both(line.product_error() for line in (u, v))
    slope = _in_both(line.slope_error() for line in (u, v))
    curvature = None if slope is None else _in_both(line.curvature_error() for line in (u, v))
    flat = slope is not None and not any(float(norm2(line.product)) > 0.0 for line in (u, v))
    found = CrossCheck(product, slope, curvature, flat)
    of_differences = product is not None and not found.replaced
    return replace(found, asymmetry=_asymmetry(u, v, of_differences, by_differences))


def asymmetry(oracle: Oracle, eps: float) -> float | None:
    """How far products by differences of gradients are from symmetric, relative to their size.

    None where it is no more than their uncertainty. It costs two products, and up to eight
    gradients where something is found.

    Args:
        oracle: what answers.
        eps: the relative rounding error of the gradients.
    """
    u, v = _lines(oracle, eps)
    found = _asymmetry(u, v, of_differences=False, by_differences=True)
    if found is None:
        return None
    # Products take larger steps than the differences here, and cross more kinks.
    errors = [subtract(line.product, line.near) for line in (u, v)]
    uncertainty = u.typical(errors[1]) + v.typical(errors[0])
    total = max(v.typical(u.product), u.typical(v.product))
    return found if found * total > RESOLVED * uncertainty else None


def _lines(oracle: Oracle, eps: float) -> tuple[_Line, _Line]:
    point, gradient = oracle.point(), oracle.gradient()
    overall = _root_mean_square(list(point.values())) or 1.0
    sizes = {name: _root_mean_square([x]) or overall for name, x in point.items()}
    u, v = (_Line(oracle, point, gradient, sizes, eps, seed) for seed in (0, 1))
    return u, v


class _Line:
    """The loss and its gradient along a random direction d."""

    def __init__(
        self,
        oracle: Oracle,
        point: Blocks,
        gradient: Blocks,
        sizes: Mapping[str, float],
        eps: float,
        seed: int,
    ) -> None:
        self.oracle, self.point, self.gradient, self.sizes = oracle, point, gradient, sizes
        self.eps, self.step = eps, eps**0.5
        self.d = self._sized(oracle.space.random(np.random.default_rng(seed)))
        self.stretch = STRETCH**seed

    @cached_property
    def product(self) -> Blocks:
        return scale(self.oracle.hvp(scale(self.d, self.stretch)), 1 / self.stretch)

    @cached_property
    def near(self) -> Blocks:
        return self._difference(self.step)

    @cached_property
    def change(self) -> Blocks:
        """What doubling the step changes in ``near``."""
        return subtract(self._difference(2 * self.step), self.near)

    def product_error(self) -> float | None:
        """The relative difference of the product from that of gradients, if it is resolved.

        With the step that crosses fewer kinks, and with the best one for smooth gradients: a rule
        may be a small part of a loss.
        """
        found = self._product_error(self.step, self.near, TOLERANCE)
        if found is None:
            h = self.eps ** (1.0 / 3.0)
            found = self._product_error(h, self._difference(h), self.eps**0.4)
        return found

    def _product_error(self, h: float, near: Blocks, tolerance: float) -> float | None:
        found = float(norm2(subtract(self.product, near)))
        total = max(float(norm2(self.product)), float(norm2(near)))
        if not found > tolerance * total:
            return None
        change = self.change if h == self.step else subtract(self._difference(2 * h), near)
        uncertainty = float(norm2(change)) + self.eps / h * float(norm2(self.gradient))
        return found / total if found > RESOLVED * uncertainty else None

    def slope_error(self) -> float | None:
        """The relative difference of ⟨∇L, d⟩ from that of losses, if it is resolved.

        With the best step for smooth losses, and with one that crosses fewer jumps of others.
        """
        found = [self._slope_error(h) for h in (self.eps ** (1.0 / 3.0), self.step)]
        return max((x for x in found if x is not None), default=None)

    def _slope_error(self, h: float) -> float | None:
        near, exact = self._slope(h), float(dot(self.gradient, self.d))
        found, total = abs(near - exact), max(abs(near), self.typical(self.gradient))
        if not found > max(ROUNDED, self.eps**0.4) * total:
            return None
        rounding = self.eps * abs(float(self.oracle.loss())) / h
        uncertainty = abs(self._slope(2 * h) - near) + rounding
        return found / total if found > RESOLVED * uncertainty else None

    def curvature_error(self) -> float | None:
        """The relative difference of ⟨d, Hd⟩ from that of losses, if it is resolved."""
        h = self.eps**0.25
        near, exact = self._bend(h), float(dot(self.product, self.d))
        found, total = abs(near - exact), max(abs(near), abs(exact))
        if not found > TOLERANCE * total:
            return None
        rounding = 4 * self.eps * abs(float(self.oracle.loss())) / h**2
        uncertainty = abs(self._bend(2 * h) - near) + rounding
        return found / total if found > RESOLVED * uncertainty else None

    def typical(self, x: Blocks) -> float:
        """How large ⟨x, d⟩ is for such directions d, as a root mean square."""
        return float(norm2(self._sized(x)))

    def _difference(self, h: float) -> Blocks:
        """∇²L d by a central difference of gradients.

        The step √ε is smaller than the best for smooth gradients, and crosses fewer kinks.
        """
        ahead, behind = (self.oracle.gradient_at(axpy(t, self.d, self.point)) for t in (h, -h))
        return scale(subtract(ahead, behind), 0.5 / h)

    def _slope(self, h: float) -> float:
        slope: float = (self._loss(h) - self._loss(-h)) * 0.5 / h
        return slope

    def _bend(self, h: float) -> float:
        here = float(self.oracle.loss())
        bend: float = (self._loss(h) - 2 * here + self._loss(-h)) / h**2
        return bend

    def _loss(self, t: float) -> float:
        return float(self.oracle.loss_at(axpy(t, self.d, self.point)))

    def _sized(self, x: Blocks) -> Blocks:
        return {name: self.sizes[name] * x[name] for name in self.point}


def _root_mean_square(tensors: list[Array]) -> float:
    named = {str(i): x for i, x in enumerate(tensors)}
    found: float = float(norm2(named)) / max(size(named), 1) ** 0.5
    return found


def _in_both(found: Iterable[float | None]) -> float | None:
    """The larger one, if neither is None; the second is not computed if the first is."""
    largest = 0.0
    for x in found:
        if x is None:
            return None
        largest = max(largest, x)
    return largest


def _asymmetry(
    first: _Line,
    second: _Line,
    of_differences: bool,
    by_differences: bool,
) -> float | None:
    a, b = (line.near if of_differences else line.product for line in (first, second))
    found = abs(float(dot(second.d, a)) - float(dot(first.d, b)))
    total = max(second.typical(a), first.typical(b))
    if not found > FINE_TOLERANCE * total:
        return None
    if not (of_differences or by_differences):
        return found / total
    uncertainty = first.typical(second.change) + second.typical(first.change)
    return found / total if found > RESOLVED * uncertainty else None
