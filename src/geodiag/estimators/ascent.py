"""Ascent: line-search ascent, cold from many starts or warm from the last witness.

This file decides how the products are spent, and what may be said of the answer. The searches are
in :mod:`geodiag.solvers.multistart` and :mod:`geodiag.solvers.warm_start`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from geodiag.blocks import Array, Blocks, dot, stack, to_numpy, unstack
from geodiag.core.stacks import one, only
from geodiag.core.validation import is_whole
from geodiag.errors import ArgumentError, product_not_finite, shown
from geodiag.estimators.base import (
    UNLIMITED,
    Measurement,
    Options,
    SearchMode,
    SharpnessEstimator,
)
from geodiag.estimators.budgets import (
    COLD_BUDGET,
    DISTANT_BUDGET,
    LARGE_COLD_BUDGET,
    RESTART_BUDGET,
)
from geodiag.estimators.diagonal_start import PROBES, moves_single_entries, steep_entries
from geodiag.estimators.distance import distance_note, further_search
from geodiag.estimators.sphere_search import on_the_sphere
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.results import SharpnessResult, Status
from geodiag.solvers import iterate
from geodiag.solvers.iterate import Iterates
from geodiag.solvers.multistart import MultiStart, Outcome, Plan, Round
from geodiag.solvers.nystrom import Products
from geodiag.solvers.warm_start import Refresh

RTOL, FREE_RTOL = 1e-4, 1e-8  # the second where products are free (a given matrix)
SINGLE_START = 2**24  # parameters: beyond it there is one start, and few vectors are kept
FEW_STARTS = 2**22  # beyond it few starts are tried on the model, and there are no rounds
FREE_STARTS, FREE_STEPS = 40, 1000
KRYLOV = 8  # Lanczos steps for the Nyström approximation ...
SMALL_BUDGET, SMALL_KRYLOV = 24, 5  # ... and with fewer products, which a climb needs more
MODEL_STEPS = 3  # on the approximation, if an LMO is a matrix decomposition
CLIMB = 12  # steps of the best cold start, before other starts are tried
ROUND_STEPS = 3  # of a round's starts, and of the best after it
ROUNDS_PATIENCE = 5  # rounds in a row that gain less than rtol=, if one was given
COMPILED_STEPS = 64  # a climb's length is compiled in multiples of this
REFRESH_RTOL = 0.01  # a refresh computes a third product if the second gained this much


class Ascent(SharpnessEstimator):
    """Monotone ascent to a local maximum; the value is a lower bound.

    Cold, a short Lanczos run proposes starts, of which the best climbs; the rest of the budget (60
    products, or ``max_hvps``) goes to rounds of new starts. Warm, from an earlier result, the
    :class:`~geodiag.estimators.base.SearchMode` decides: a refresh takes two or three products, an
    exploratory search up to ten, a cold restart 20. Far from the point of the last search a refresh
    is followed by another search, of up to ten products or 30 (docs/results.md).

    Memory, in parameter-sized vectors (docs/memory.md): up to 300; 70 from 4 million parameters on,
    where fewer starts are tried; 17 from 16 million on, where only the gradient's start climbs,
    with 14 products by default.

    Args:
        starts: the number of starts, the gradient's and random ones, instead of the proposed ones.

    Examples:
        >>> H = np.array([[2.0, -1.0], [-1.0, 3.0]])
        >>> estimator = geodiag.estimators.Ascent(starts=3)
        >>> round(float(geodiag.sharpness(H, "linf", estimator=estimator)), 6)
        7.0
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
        if start is None or options.age is None or m.unlimited:
            return self._cold(m, start, budget_from_here(m)).finish(m)
        mode = options.search_mode if options.max_hvps is None else SearchMode.REFRESH
        found, values = self._warm(m, start, mode)
        further = further_search(options, values, m.loss)
        if further in (None, mode) or m.left(options.max_hvps or UNLIMITED) <= KRYLOV:
            return found.finish(m, mode)
        note = distance_note(options, found.value, m.loss)
        return self._warm(m, only(found.best.direction), further)[0].finish(m, further, (note,))

    def _warm(
        self, m: Measurement, start: Blocks, mode: SearchMode
    ) -> tuple[Found, tuple[float, ...]]:
        """By mode, or within the budget that was given; and the values that tell the distance."""
        budget = m.options.max_hvps
        if mode is SearchMode.REFRESH:
            if budget is None:
                return self._refresh(m, start)
            found = self.climb(m, [m.unit(start)], budget)
        elif mode is SearchMode.EXPLORATORY and budget is None:
            found = self._explore(m, start)
            # That it finds more is no distance.
            return found, (min(found.value, m.options.searched.value),)
        else:
            far = mode is SearchMode.DISTANT and m.oracle.space.size <= SINGLE_START
            share = DISTANT_BUDGET if far else RESTART_BUDGET
            found = self._cold(m, start, budget or m.oracle.num_hvps + share)
        return found, (found.value,)

    def _refresh(self, m: Measurement, start: Blocks) -> tuple[Found, tuple[float, ...]]:
        """A step or two from the last witness, and the values before and after."""
        model_steps = 0 if m.oracle.space.size > SINGLE_START else MODEL_STEPS
        program = Refresh(m.norm, REFRESH_RTOL, model_steps)
        outcome = m.oracle.run(program, one(m.unit(start)))
        before, outcome = outcome.history[0], outcome._replace(history=outcome.history[1:])
        found = _settle(m, outcome, RESTART_BUDGET, start)
        return found, (float(before), found.value)

    def _explore(self, m: Measurement, start: Blocks) -> Found:
        """The last witness against the best start of a small Nyström approximation."""
        size = m.oracle.space.size
        mixtures, model_steps, krylov = (2, MODEL_STEPS, 5) if size <= SINGLE_START else (0, 0, 3)
        krylov = min(krylov, size)
        plan = Plan(krylov, 1, model_steps, race=0, climb=2, patience=1)
        return _search(m, plan, [m.unit(start)], mixtures, RESTART_BUDGET, start)

    def climb(self, m: Measurement, starts: list[Blocks], budget: int) -> Found:
        """The best that ``starts`` reach within the budget, by successive halving."""
        starts = starts[: max(1, m.left(budget))]
        rtol = _rtol(m)
        if m.unlimited:
            plan = Plan(race=FREE_STEPS, climb=FREE_STEPS, rtol=rtol)
        else:
            plans = [Plan(race=race, rtol=rtol, climb=0) for race in (3, 2, 1, 0)]
            fitting = (p for p in plans if p.spent(len(starts)) <= m.left(budget))
            plan = next(fitting, plans[-1])
        climb = max(0, m.left(budget) - plan.spent(len(starts)))
        if not m.unlimited:  # one program for many budgets
            plan = replace(plan, climb=-(-climb // COMPILED_STEPS) * COMPILED_STEPS)
        most = m.oracle.space.asarray(np.asarray(min(climb, plan.climb)))
        program = MultiStart(m.norm, plan)
        outcome = m.oracle.run(program, stack(starts), m.gradient, None, None, most)
        return _settle(m, outcome, budget)

    def _cold(self, m: Measurement, start: Blocks | None, budget: int) -> Found:
        known = [] if start is None else [m.unit(start)]
        count = FREE_STARTS if m.unlimited else self.starts
        ample = m.left(budget) > PROBES + 2
        if count is None and (m.left(budget) < KRYLOV or m.oracle.space.size > SINGLE_START):
            count = 1
        if ample and len(known) < (count or FREE_STARTS) and moves_single_entries(m):
            known.append(steep_entries(m))
        if count is None:
            return self._from_proposed_starts(m, known, budget)
        if len(known) < count and float(dot(m.gradient, m.steepest)) > 0:
            known.append(m.unit(m.steepest))
        known += [m.random() for _ in range(count - len(known))]
        return self.climb(m, known[:count], budget)

    def _from_proposed_starts(self, m: Measurement, known: list[Blocks], budget: int) -> Found:
        size, rtol = m.oracle.space.size, _rtol(m)
        large = size > FEW_STARTS
        mixtures, model_steps = (2, MODEL_STEPS) if m.norm.decomposes or large else (14, 8)
        left, candidates = m.left(budget), 2
        krylov = min(KRYLOV if left >= SMALL_BUDGET else SMALL_KRYLOV, left // 3, size)
        plan = Plan(krylov, candidates, model_steps, rtol=rtol, climb=0, rounds=not large)
        rest = left - plan.spent(len(known))
        if rest < 0:
            return self.climb(m, known, budget)
        plan = replace(plan, climb=min(CLIMB, rest))
        found = _search(m, plan, known, mixtures, budget)
        round_cost = (1 + candidates) * (1 + ROUND_STEPS) + ROUND_STEPS
        stalled, patience = 0, ROUNDS_PATIENCE if m.options.rtol else math.inf
        while found.products is not None and m.left(budget) > round_cost and stalled < patience:
            before, found = found, self._round(m, found, plan, mixtures)
            stalled = 0 if found.value > before.value * (1 + rtol) else stalled + 1
        if not found.converged and m.left(budget) > 1:
            found = replace(
                self.climb(m, unstack(found.best.direction), budget), spread=found.spread
            )
        return found

    def _round(self, m: Measurement, found: Found, cold: Plan, mixtures: int) -> Found:
        """A random start and two proposed ones, against what was found."""
        products = found.products
        assert products is not None
        outcome = m.oracle.run(
            Round(m.norm, replace(cold, race=ROUND_STEPS, climb=ROUND_STEPS)),
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

    best: Iterates
    value: float
    converged: bool
    spread: float | None
    history: tuple[float, ...]
    products: Products | None

    def finish(
        self,
        m: Measurement,
        mode: SearchMode = SearchMode.COLD,
        notes: tuple[str, ...] = (),
    ) -> SharpnessResult:
        """The result, certified by one more product.

        After few products the last one is enough, if it was at the witness itself.
        """
        fresh = not mode.cold and m.options.max_hvps is None and bool(self.best.fresh[0])
        image = only(self.best.image) if fresh else None
        return m.finish(
            only(self.best.direction),
            Status.CONVERGED if self.converged else Status.BUDGET,
            image=image,
            spread=self.spread,
            history=self.history,
            notes=notes,
            age=0 if mode.cold else m.options.next_age,
            searched=m.options.searched if mode is SearchMode.REFRESH else None,
        )


def budget_from_here(m: Measurement) -> int:
    """The total of products that the measurement may reach with an ascent from here."""
    if m.options.max_hvps or m.unlimited:
        return m.options.max_hvps or 10**9
    return m.oracle.num_hvps + (
        LARGE_COLD_BUDGET if m.oracle.space.size > SINGLE_START else COLD_BUDGET
    )


def _rtol(m: Measurement) -> float:
    return m.options.rtol or (FREE_RTOL if m.oracle.free_hvps else RTOL)


def _normal(m: Measurement, *shape: int) -> Array:
    return m.oracle.space.asarray(m.rng.standard_normal(shape))


def _search(
    m: Measurement,
    plan: Plan,
    known: list[Blocks],
    mixtures: int,
    budget: int,
    start: Blocks | None = None,
) -> Found:
    """From ``known`` starts, and those that a Nyström approximation proposes."""
    outcome = m.oracle.run(
        MultiStart(m.norm, plan),
        stack(known) if known else None,
        m.gradient,
        m.oracle.space.random(m.rng),
        _normal(m, mixtures, plan.krylov),
    )
    return _settle(m, outcome, budget, start)


def _settle(
    m: Measurement, outcome: Outcome, budget: int = 0, start: Blocks | None = None
) -> Found:
    """An outcome on the host. If its value is not positive, the search goes on on the sphere.

    ``start`` is where from, if the ascent ended at the origin.

    Raises:
        NonFiniteError: a product was not finite.
    """
    best, values = outcome.best, to_numpy(outcome.values)
    value = float(best.value[0])
    if not (math.isfinite(value) and np.all(np.isfinite(values))):
        raise product_not_finite()
    # Inside the ball rounding may change the sign of a value; and the origin is no witness.
    if value <= 0 or not bool(best.fresh[0]):
        direction = only(best.direction)
        length = float(m.norm.value(direction))
        if length > 0:
            value = min(value, float(dot(direction, only(best.image))) / length**2)
        else:
            other = one(m.random() if start is None else m.unit(start))
            value, best = 0.0, best._replace(direction=other, fresh=best.stalled < 0)
    if value <= 0 and m.left(budget) > 1:
        best = on_the_sphere(m, best, budget, _rtol(m))
        value = float(best.value[0])
    m.report(value)
    history = tuple(float(v) for v in to_numpy(outcome.history) if not math.isnan(v))
    top = float(values.max())
    return Found(
        best=best,
        value=value,
        converged=bool(best.stalled[0] >= iterate.PATIENCE),
        spread=(top - float(values.min())) / abs(top) if values.size > 1 and top else None,
        history=history,
        products=outcome.products,
    )
