"""Where the best value is not positive: the search on the sphere instead of in the ball.

Inside the ball the origin would win; on ‖d‖ = 1 a maximum can be negative.
"""

from __future__ import annotations

from geodiag.blocks import Blocks
from geodiag.core.batched import one, only
from geodiag.estimators.base import Measurement
from geodiag.solvers import iterate
from geodiag.solvers.iterate import Population
from geodiag.solvers.line_search import segment, sphere

STARTS = 8
STEPS = 3  # one of each kind
LIMIT = 1000


def on_the_sphere(m: Measurement, best: Population, budget: int, rtol: float) -> Population:
    """Sphere steps from the best point and, where products are free, from others; and, from a
    positive value on, segments again."""
    others = STARTS - 1 if m.unlimited else 0
    starts = [m.unit(only(best.direction)), *(m.random() for _ in range(others))]
    return iterate.best(iterate.together(*(_around(m, start, budget, rtol) for start in starts)))


def _around(m: Measurement, direction: Blocks, budget: int, rtol: float) -> Population:
    start = iterate.begin(one(direction), one(m.oracle.hvp(direction)))
    limit = min(LIMIT, m.left(budget)) // STEPS
    p = iterate.run(m.oracle, lambda p: _round(m, p), start, limit, rtol).population
    if float(p.value[0]) <= 0:
        return p
    limit, p = min(LIMIT, m.left(budget)), p._replace(calm=p.calm * 0)
    return iterate.run(
        m.oracle, lambda p: segment(m.norm, m.oracle.hvps, p), p, limit, rtol
    ).population


def _round(m: Measurement, p: Population) -> Population:
    for turn in range(STEPS):
        p = sphere(m.oracle, m.norm, turn, p)
    return p
