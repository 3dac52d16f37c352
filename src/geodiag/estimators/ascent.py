"""Ascent: line-search ascent, cold from a portfolio of starts or warm from the last witness.

The search itself is in :mod:`geodiag.solvers.multistart`; this is what decides how the products
are spent, and what the answer may claim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    dot,
    stack,
    to_numpy,
    unstack,
)
from geodiag.core.batched import one, only
from geodiag.core.validation import is_whole
from geodiag.errors import ArgumentError, NonFiniteError, shown
from geodiag.estimators.base import Measurement, Options, SharpnessEstimator
from geodiag.estimators.diagonal_start import PROBES, moves_single_entries, steep_entries
from geodiag.estimators.sphere_search import on_the_sphere
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.results import SharpnessResult, Status
from geodiag.solvers import iterate
from geodiag.solvers.iterate import Population
from geodiag.solvers.multistart import Cold, Explore, Outcome, Plan
from geodiag.solvers.nystrom import Products
from geodiag.solvers.warm_start import Track

RTOL = 1e-4
FREE_RTOL = 1e-8
BUDGET = 60
HUGE_BUDGET = 14
FREE_STARTS = 40
FREE_STEPS = 1000
KRYLOV = 8
FEW, FEW_KRYLOV = 24, 5  # below so many products a climb gains more by them than the surrogate
REHEARSAL = 3  # steps on a surrogate, where an LMO is a decomposition
CLIMB = 12  # of the best cold start, before others are looked for
EXPLORE = 3  # steps of a round's starts, and of the best after it
STEPS = 64  # a climb's length is compiled in multiples of this
TRACK_RTOL = 0.01  # a warm measurement's second step is taken if the first gained so much
GLANCE = 5  # every so many of them, a start from a small surrogate is tried too
CHECK = 20  # measurements from one cold check to the next ...
CHECK_BUDGET = 20  # ... and its products
PATIENCE = 5  # rounds that gain less than rtol=, if one was asked for
HUGE = 2**24  # entries: beyond it one start, fewer products by default, and few vectors kept
LARGE = 2**22  # beyond it few starts are rehearsed, and no products kept for later rounds


class Ascent(SharpnessEstimator):
    """Monotone ascent to a local maximum; the value is a lower bound.

    Cold, a short Lanczos run finds promising starts, of which the best climbs; what is left of the
    budget (60 products, or ``max_hvps``) goes to rounds of new starts. ``starts``: so many starts
    instead, the gradient's and random ones. Warm, from an earlier result: two or three products,
    every fifth time up to ten, some for a start found anew, and every 20th a cold check of 20.

    Memory, in parameter-sized vectors (docs/memory.md): up to 300; 70 from 4 million parameters on,
    where fewer starts are tried; 17 from 16 million on, where the gradient's start climbs alone,
    with 14 products by default.
    """

    def __init__(self, starts: int | None = None) -> None:
        if starts is not None and not (is_whole(starts) and starts >= 1):
            raise ArgumentError("Ascent needs at least one start", got=f"starts={shown(starts)}")
        self.starts = None if starts is None else int(starts)

    def estimate(
        self,
        oracle: Oracle,
        norm: Norm,
        start: Blocks | None = None,
        options: Options = Options(),
    ) -> SharpnessResult:
        m = Measurement(oracle, norm, self, options)
        age = options.age
        if start is None or age is None or m.unlimited:
            found = self._cold(m, start, budget_from_here(m))
            return found.finish(m)
        if options.max_hvps is not None:
            return self.climb(m, [m.unit(start)], options.max_hvps).finish(m, age=age + 1)
        if age + 1 < CHECK:
            found = self._track(m, start) if (age + 1) % GLANCE else self._glance(m, start)
            return found.finish(m, age=age + 1, fresh=True)
        return self._cold(m, start, CHECK_BUDGET).finish(m)

    def _track(self, m: Measurement, start: Blocks) -> Found:
        """A step or two from the last witness."""
        rehearsal = 0 if m.oracle.space.size > HUGE else REHEARSAL
        outcome = m.oracle.run(Track(m.norm, TRACK_RTOL, rehearsal), one(m.unit(start)))
        return _settle(m, outcome, CHECK_BUDGET, start)

    def _glance(self, m: Measurement, start: Blocks) -> Found:
        """The last witness against the best start of a small surrogate made anew."""
        size = m.oracle.space.size
        mixtures, rehearsal, krylov = (2, REHEARSAL, 5) if size <= HUGE else (0, 0, 3)
        krylov = min(krylov, size)
        plan = Plan(krylov, 1, rehearsal, race=0, climb=2, calm=1)
        outcome = m.oracle.run(
            Cold(m.norm, plan),
            one(m.unit(start)),
            m.gradient,
            m.oracle.space.random(m.rng),
            _normal(m, mixtures, krylov),
        )
        return _settle(m, outcome, CHECK_BUDGET, start)

    def climb(self, m: Measurement, starts: list[Blocks], budget: int) -> Found:
        """The best that ``starts`` reach within the budget, by successive halving."""
        starts = starts[: max(1, m.left(budget))]
        rtol = _rtol(m)
        if m.unlimited:
            plan = Plan(race=FREE_STEPS, climb=FREE_STEPS, rtol=rtol)
        else:
            race = next(
                r for r in (3, 2, 1, 0) if _spent(len(starts), r) <= m.left(budget) or not r
            )
            plan = Plan(race=race, rtol=rtol, climb=0)
        room = max(0, m.left(budget) - plan.spent(len(starts)))
        if not m.unlimited:  # one program for many budgets
            plan = replace(plan, climb=-(-room // STEPS) * STEPS)
        steps = m.oracle.space.asarray(np.asarray(min(room, plan.climb)))
        outcome = m.oracle.run(Cold(m.norm, plan), stack(starts), m.gradient, None, None, steps)
        return _settle(m, outcome, budget)

    def _cold(self, m: Measurement, start: Blocks | None, budget: int) -> Found:
        known = [] if start is None else [m.unit(start)]
        count = FREE_STARTS if m.unlimited else self.starts
        ample = m.left(budget) > PROBES + 2
        if count is None and (m.left(budget) < KRYLOV or m.oracle.space.size > HUGE):
            count = 1
        if ample and len(known) < (count or FREE_STARTS) and moves_single_entries(m):
            known.append(steep_entries(m))
        if count is None:
            return self._portfolio(m, known, budget)
        if len(known) < count and float(dot(m.gradient, m.steepest)) > 0:
            known.append(m.unit(m.steepest))
        known += [m.random() for _ in range(count - len(known))]
        return self.climb(m, known[:count], budget)

    def _portfolio(self, m: Measurement, known: list[Blocks], budget: int) -> Found:
        size, rtol = m.oracle.space.size, _rtol(m)
        large = size > LARGE
        mixtures, rehearsal = (2, REHEARSAL) if m.norm.decomposes or large else (14, 8)
        left = m.left(budget)
        candidates, krylov = 2, min(KRYLOV if left >= FEW else FEW_KRYLOV, left // 3, size)
        plan = Plan(krylov, candidates, rehearsal, rtol=rtol, climb=0, explored=not large)
        if plan.spent(len(known)) > m.left(budget):
            return self.climb(m, known, budget)
        climb = max(0, m.left(budget) - plan.spent(len(known)))
        plan = replace(plan, climb=min(CLIMB, climb))
        outcome = m.oracle.run(
            Cold(m.norm, plan),
            stack(known) if known else None,
            m.gradient,
            m.oracle.space.random(m.rng),
            _normal(m, mixtures, krylov),
        )
        found = _settle(m, outcome, budget)
        round_cost = (1 + candidates) * (1 + EXPLORE) + EXPLORE
        quiet, patience = 0, PATIENCE if m.options.rtol else math.inf
        while found.products is not None and m.left(budget) > round_cost and quiet < patience:
            before, found = found, self._explore(m, found, plan, mixtures)
            quiet = 0 if found.value > before.value * (1 + rtol) else quiet + 1
        if not found.converged and m.left(budget) > 1:
            found = replace(
                self.climb(m, unstack(found.best.direction), budget), spread=found.spread
            )
        return found

    def _explore(self, m: Measurement, found: Found, cold: Plan, mixtures: int) -> Found:
        """One round more: a random start and two proposals, against what was found."""
        products = found.products
        assert products is not None
        outcome = m.oracle.run(
            Explore(m.norm, replace(cold, race=EXPLORE, climb=EXPLORE)),
            found.best,
            products,
            m.gradient,
            one(m.oracle.space.random(m.rng)),
            _normal(m, mixtures, int(products.inner.shape[0])),
        )
        new = _settle(m, outcome)
        if new.value <= max(found.value, 0.0):  # the origin is no witness
            return replace(found, products=new.products)
        history = found.history + tuple(v for v in new.history if v > found.value)
        return replace(new, spread=found.spread, history=history)

    def __repr__(self) -> str:
        return "Ascent()" if self.starts is None else f"Ascent(starts={self.starts})"


@dataclass(frozen=True)
class Found:
    """What a search has found, on the host."""

    best: Population
    value: float
    converged: bool
    spread: float | None
    history: tuple[float, ...]
    products: Products | None

    def finish(
        self, m: Measurement, age: int = 0, fresh: bool = False, notes: tuple[str, ...] = ()
    ) -> SharpnessResult:
        """The result, certified by one product more; with ``fresh`` only where the last was not at
        the witness itself."""
        image = only(self.best.image) if fresh and bool(self.best.fresh[0]) else None
        return m.finish(
            only(self.best.direction),
            Status.CONVERGED if self.converged else Status.BUDGET,
            image=image,
            spread=self.spread,
            history=self.history,
            notes=notes,
            age=age,
        )


def budget_from_here(m: Measurement) -> int:
    """How many products the measurement may have taken when an ascent from here is over."""
    if m.options.max_hvps or m.unlimited:
        return m.options.max_hvps or 10**9
    return m.oracle.num_hvps + (HUGE_BUDGET if m.oracle.space.size > HUGE else BUDGET)


def _rtol(m: Measurement) -> float:
    return m.options.rtol or (FREE_RTOL if m.oracle.free_hvps else RTOL)


def _spent(known: int, race: int) -> int:
    return Plan(race=race, climb=0).spent(known)


def _normal(m: Measurement, *shape: int) -> Array:
    return m.oracle.space.asarray(m.rng.standard_normal(shape))


def _settle(
    m: Measurement, outcome: Outcome, budget: int = 0, start: Blocks | None = None
) -> Found:
    """An outcome on the host; where it ends at no positive value, the search on the sphere, from
    ``start`` if it ended at the origin.

    Raises:
        NonFiniteError: a product was not finite.
    """
    best, values = outcome.best, to_numpy(outcome.values)
    value = float(best.value[0])
    if not (math.isfinite(value) and np.all(np.isfinite(values))):
        raise NonFiniteError(
            "a Hessian-vector product is not finite",
            got="NaN or infinity",
            do="check the parameters and the data; the training may have diverged",
        )
    # Inside the ball rounding may turn a negative value; and its origin is no witness.
    if value <= 0 or not bool(best.fresh[0]):
        direction = only(best.direction)
        length = float(m.norm.value(direction))
        if length > 0:
            value = min(value, float(dot(direction, only(best.image))) / length**2)
        else:
            other = one(m.random() if start is None else m.unit(start))
            value, best = 0.0, best._replace(direction=other, fresh=best.calm < 0)
    if value <= 0 and m.left(budget) > 1:
        best = on_the_sphere(m, best, budget, _rtol(m))
        value = float(best.value[0])
    m.report(value)
    history = tuple(float(v) for v in to_numpy(outcome.history) if not math.isnan(v))
    top = float(values.max())
    return Found(
        best=best,
        value=value,
        converged=bool(best.calm[0] >= iterate.CALM),
        spread=(top - float(values.min())) / abs(top) if values.size > 1 and top else None,
        history=history,
        products=outcome.products,
    )
