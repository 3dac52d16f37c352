"""The search on the sphere instead of in the ball, if the best value is not positive.

In the ball the maximum is then 0, at the origin; on ‖d‖ = 1 it may be negative.
"""

from __future__ import annotations

from geodiag.blocks import Blocks
from geodiag.core.stacks import one, only
from geodiag.estimators.base import Measurement
from geodiag.solvers import iterate
from geodiag.solvers.iterate import Iterates
from geodiag.solvers.line_search import segment, sphere

STARTS = 8
STEPS = 3  # one of each kind
LIMIT = 1000


def on_the_sphere(m: Measurement, best: Iterates, budget: int, rtol: float) -> Iterates:
    """The best that steps on the sphere reach from ``best``, or from others if products are free.

    Once a value is positive, line searches in the ball follow.
    """
    others = STARTS - 1 if m.unlimited else 0
    starts = [m.unit(only(best.direction)), *(m.random() for _ in range(others))]
    return iterate.best(iterate.together(*(_around(m, start, budget, rtol) for start in starts)))


def _around(m: Measurement, direction: Blocks, budget: int, rtol: float) -> Iterates:
    start = iterate.begin(one(direction), one(m.oracle.hvp(direction)))
    limit = min(LIMIT, m.left(budget)) // STEPS
    p = iterate.run(m.oracle, lambda p: _round(m, p), start, limit, rtol).iterates
    if float(p.value[0]) <= 0:
        return p
    limit, p = min(LIMIT, m.left(budget)), p._replace(stalled=p.stalled * 0)
    return iterate.run(
        m.oracle, lambda p: segment(m.norm, m.oracle.hvps, p), p, limit, rtol
    ).iterates


def _round(m: Measurement, p: Iterates) -> Iterates:
    for turn in range(STEPS):
        p = sphere(m.oracle, m.norm, turn, p)
    return p
