"""The steps of an ascent: exact line searches, along a segment in the ball or on the sphere.

A step takes one product. Hd is known by linearity, so the product H·lmo(Hd) gives the objective on
the whole segment from d to lmo(Hd), a quadratic in the step size t. If it is convex, its maximum is
at t = 1, the conditional-gradient (Frank–Wolfe) step; if H is indefinite, it may be inside. A limit
of such steps with a positive value is on the sphere, as a maximum over the ball is.
"""

from __future__ import annotations

from collections.abc import Callable

from geodiag.blocks import Array, Blocks, array_namespace, axpy, dot, positive, scale, where
from geodiag.core.stacks import blend, dots, one, only
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.solvers.iterate import Iterates


def segment(norm: Norm, hvps: Callable[[Blocks], Blocks], p: Iterates) -> Iterates:
    """Each member to the best point between it and lmo(Hd)."""
    target = norm.lmos(p.image)
    return toward(p, target, hvps(target))


def toward(p: Iterates, target: Blocks, image: Blocks) -> Iterates:
    """Each member to the best point between it and its target, or the opposite of the target."""
    xp = array_namespace(p.value)
    a, b, c = p.value, dots(target, p.image), dots(target, image)
    side = xp.where(b < 0, -xp.ones_like(b), xp.ones_like(b))
    b = side * b
    curvature = a - 2 * b + c  # q(t) = a + 2t(b − a) + t²·curvature
    stationary = (b - a) / xp.where(curvature < 0, -curvature, xp.ones_like(curvature))
    full = ~((curvature < 0) & (stationary > 0) & (stationary < 1))
    value = xp.where(full, c, a + stationary * (2 * (b - a) + stationary * curvature))
    better = value > a
    t = xp.where(better, xp.where(full, xp.ones_like(a), stationary), xp.zeros_like(a))
    # NaN must reach the driver, which stops at it; it never compares as better.
    value = xp.where(better | ~xp.isfinite(c), value, a)
    return p._replace(
        direction=blend(p.direction, target, t, side),
        image=blend(p.image, image, t, side),
        value=value,
        fresh=xp.where(better, full, p.fresh),
    )


def sphere(oracle: Oracle, norm: Norm, turn: int, p: Iterates) -> Iterates:
    """A line search for ⟨d, Hd⟩/‖d‖², where no positive value is known; for one member, ‖d‖ = 1.

    In the plane of d and a second direction it takes one product and several norms. ``turn``
    chooses the second direction: lmo(Hd), Hd or their mixture.
    """
    d, image = only(p.direction), only(p.image)
    steepest = norm.lmo(image)
    along = scale(image, 1 / positive(norm.value(image)))
    second = (steepest, along, axpy(0.5, steepest, along))[turn % 3]
    moved = oracle.hvp(second)
    value = p.value[0]
    best = d, image, value
    for k in range(1, 12):  # steps t = ±2^{1−k}, ever closer to d
        for sign in (1.0, -1.0):
            t = sign * 2.0 ** (1 - k)
            best = _better(norm, best, axpy(t, second, d), axpy(t, moved, image))
    fresh = p.fresh & (best[2] == value)
    return p._replace(direction=one(best[0]), image=one(best[1]), value=best[2][None], fresh=fresh)


Best = tuple[Blocks, Blocks, Array]


def _better(norm: Norm, best: Best, point: Blocks, image: Blocks) -> Best:
    """``point``, scaled to the sphere, if it is better."""
    length = norm.value(point)
    safe = positive(length)
    value = dot(point, image) / (safe * safe)
    better: Array = (length > 0) & (value > best[2])
    xp = array_namespace(length)
    return (
        where(better, scale(point, 1 / safe), best[0]),
        where(better, scale(image, 1 / safe), best[1]),
        xp.where(better | ~xp.isfinite(value), value, best[2]),
    )
