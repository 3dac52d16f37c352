"""Ascent: exact line search on the segment from d to lmo(Hd), from several starts.

One product an iteration: with Hd kept by linearity, the new product H·lmo(Hd) gives the objective
on the whole segment, a quadratic in the step t. Where it is convex, its maximum is the unit step
(the conditional-gradient step that closed-form cases need); where H is indefinite it may lie
inside. An inside point with a positive value is scaled to the sphere, which only raises it.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    array_namespace,
    axpy,
    dot,
    map_blocks,
    namespace,
    scale,
    where,
    zeros_like,
)
from geodiag.errors import ArgumentError
from geodiag.estimators import driver
from geodiag.estimators.base import Measurement, Options, SharpnessEstimator
from geodiag.estimators.driver import State
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.results import SharpnessResult, Status

RTOL = 1e-4
FREE_RTOL = 1e-8
BUDGET = 60
STARTS = 8
WARM_STARTS = 4  # where start= is given, which is usually the best
FREE_STARTS = 40
WORTHWHILE = 10  # products that a further start needs to get anywhere
PROBES = 8
FREE_PROBES = 64


class Ascent(SharpnessEstimator):
    """Monotone ascent to a local maximum, from the gradient and from random starts.

    All starts run three iterations; the better half goes on, until one runs to convergence. What is
    then left of ``max_hvps``, if it was given, goes to further random starts. The value is a lower
    bound. ``starts``: how many (default 8, 4 with ``start=``; 40 where products are free).
    """

    def __init__(self, starts: int | None = None) -> None:
        if starts is not None and starts < 1:
            raise ArgumentError("Ascent needs at least one start", got=f"starts={starts}")
        self.starts = starts

    def estimate(
        self,
        oracle: Oracle,
        norm: Norm,
        start: Blocks | None = None,
        options: Options = Options(),
    ) -> SharpnessResult:
        m = Measurement(oracle, norm, self, options)
        cold = FREE_STARTS if _unlimited(m) else STARTS
        count = self.starts or (cold if start is None or _unlimited(m) else WARM_STARTS)
        budget = budget_from_here(m)  # what the search for starts takes counts too
        more = start is None and self.starts is None and options.max_hvps is not None
        best, spread = self.climb(m, self._starts(m, start, count), budget, more)
        status = Status.CONVERGED if driver.converged(best) else Status.BUDGET
        history = tuple(float(v) for v in best.history)
        return m.finish(best.direction, status, spread=spread, history=history)

    def climb(
        self, m: Measurement, starts: list[Blocks], budget: int, more: bool = False
    ) -> tuple[State, float | None]:
        """The best state reached from ``starts`` within the budget, and the spread.

        ``more``: spend what is left of the budget on further random starts.
        """
        free = _unlimited(m)
        rtol = m.options.rtol or (FREE_RTOL if m.oracle.free_hvps else RTOL)
        states: list[State] = []
        for direction in starts:
            if m.left(budget) > 0 or not states:
                states.append(_begin(m, direction))
        if free:
            return _run_all(m, states, rtol)
        best, spread = _halve(m, states, rtol, budget)
        while more and m.left(budget) >= WORTHWHILE:
            other = _begin(m, m.random())
            best = _best_first([best, _climb(m, other, m.left(budget), rtol)])[0]
        return best, spread

    def _starts(self, m: Measurement, start: Blocks | None, count: int) -> list[Blocks]:
        found = [] if start is None else [m.unit(start)]
        if float(dot(m.gradient, m.steepest)) > 0:
            found.append(m.unit(m.steepest))
        ample = m.left(budget_from_here(m)) >= PROBES + WORTHWHILE
        if len(found) < count and ample and _moves_single_entries(m):
            found.append(_steep_entries(m))
        return (found + [m.random() for _ in range(count - len(found))])[:count]

    def __repr__(self) -> str:
        return "Ascent()" if self.starts is None else f"Ascent(starts={self.starts})"


def _unlimited(m: Measurement) -> bool:
    """Whether products cost nothing and the user set no budget."""
    return m.oracle.free_hvps and m.options.max_hvps is None


def budget_from_here(m: Measurement) -> int:
    """How many products the measurement may have taken when an ascent from here is over."""
    return m.options.max_hvps or (10**9 if _unlimited(m) else m.oracle.num_hvps + BUDGET)


def _moves_single_entries(m: Measurement) -> bool:
    """Whether the norm's LMO has one entry, as in ℓ1: random starts then say little."""
    example = m.norm.lmo(m.oracle.space.random(np.random.default_rng(0)))
    xp = namespace(example)
    return sum(int(xp.sum(xp.astype(x != 0, xp.int32))) for x in example.values()) == 1


def _steep_entries(m: Measurement) -> Blocks:
    """Where the Hessian's diagonal is largest, by the mean of z ⊙ Hz over random signs z."""
    total = zeros_like(m.gradient)
    for _ in range(FREE_PROBES if _unlimited(m) else PROBES):
        signs = map_blocks(namespace(total).sign, m.oracle.space.random(m.rng))
        total = map_blocks(lambda t, z, h: t + z * h, total, signs, m.oracle.hvp(signs))
    xp = namespace(total)
    positive = map_blocks(lambda x: xp.where(x > 0, x, xp.zeros_like(x)), total)
    steep = m.norm.lmo(positive)
    return m.unit(steep) if float(m.norm.value(steep)) > 0 else m.random()


def _begin(m: Measurement, direction: Blocks) -> State:
    image = m.oracle.hvp(direction)
    return driver.begin(direction, image, dot(direction, image))


def _climb(m: Measurement, state: State, limit: int, rtol: float) -> State:
    """Segment steps; where they end at no positive value, sphere steps, and segments again."""
    state = driver.run(m.oracle, partial(segment_step, m), state, limit, rtol)
    if float(state.value) <= 0:
        for step in (sphere_step, segment_step):
            limit -= int(state.iteration)
            state = driver.run(m.oracle, partial(step, m), state, limit, rtol)
    m.report(float(state.value))
    return state


def _run_all(m: Measurement, states: list[State], rtol: float) -> tuple[State, float]:
    """Every start to convergence: for free products.

    Sphere steps, which are slow, are taken only where no start found a positive value.
    """
    segment = partial(segment_step, m)
    done = _best_first([driver.run(m.oracle, segment, s, 1000, rtol) for s in states])
    if float(done[0].value) <= 0:
        done = _best_first([_climb(m, s, 500, rtol) for s in done[:STARTS]])
    m.report(float(done[0].value))
    return done[0], _spread(done)


def _best_first(states: list[State]) -> list[State]:
    return sorted(states, key=lambda s: -float(s.value))


def _halve(
    m: Measurement, states: list[State], rtol: float, budget: int
) -> tuple[State, float | None]:
    """Successive halving: three steps each, then the better half goes on."""
    spread = None
    while len(states) > 1:
        states = _best_first(
            [
                s if driver.converged(s) else _climb(m, s, min(3, m.left(budget)), rtol)
                for s in states
            ]
        )
        spread = _spread(states) if spread is None else spread
        states = states[: (len(states) + 1) // 2]
        if len(states) > 1 and all(driver.converged(s) for s in states):
            break
    best = states[0]
    if not driver.converged(best):
        best = _climb(m, best, m.left(budget), rtol)
    return best, spread


def _spread(states: list[State]) -> float:
    values = [float(s.value) for s in states]
    return (max(values) - min(values)) / abs(max(values)) if max(values) else 0.0


def segment_step(m: Measurement, s: State) -> State:
    """The best point of the segment from d to lmo(Hd), scaled to the sphere."""
    target = m.norm.lmo(s.image)
    image = m.oracle.hvp(target)
    a, b, c = s.value, dot(target, s.image), dot(target, image)
    xp = array_namespace(a)
    bend = a - 2 * b + c  # q(t) = a + 2t(b − a) + t²·bend, with q'(0) = 2(b − a) ≥ 0
    one = xp.ones_like(a)
    inside = (b - a) / xp.where(bend < 0, -bend, one)
    t = xp.where((bend < 0) & (inside < 1), inside, one)
    point = axpy(t, target, scale(s.direction, 1 - t))
    moved = axpy(t, image, scale(s.image, 1 - t))
    return _accept_scaled(m, s, point, moved, require_positive=True)


def sphere_step(m: Measurement, s: State) -> State:
    """For H negative on all of the sphere met so far: the best direction in a plane through d.

    The objective ⟨d, Hd⟩/‖d‖² in the plane of d and a second direction needs one product and
    several norms. The second direction alternates between lmo(Hd), Hd and their mixture.
    """
    steepest, along = m.norm.lmo(s.image), scale(s.image, 1 / _positive(m.norm.value(s.image)))
    turn = s.iteration % 3
    mixed = axpy(0.5, steepest, along)
    second = where(turn == 0, steepest, where(turn == 1, along, mixed))
    image = m.oracle.hvp(second)
    best = s
    for k in range(1, 12):  # steps t = ±2^{1−k}, ever closer to d
        for sign in (1.0, -1.0):
            t = sign * 2.0 ** (1 - k)
            point = axpy(t, second, s.direction)
            moved = axpy(t, image, s.image)
            best = _accept_scaled(m, best, point, moved)
    return best


def _positive(length: Array) -> Array:
    """A length to divide by: 1 in place of 0."""
    xp = array_namespace(length)
    return xp.where(length > 0, length, xp.ones_like(length))


def _accept_scaled(
    m: Measurement, s: State, point: Blocks, image: Blocks, require_positive: bool = False
) -> State:
    """``point`` scaled to the sphere if that beats the state's value."""
    length = m.norm.value(point)
    xp = array_namespace(length)
    safe = _positive(length)
    raw = dot(point, image)
    value = raw / (safe * safe)
    better: Array = (length > 0) & (value > s.value)
    if require_positive:
        better = better & (raw > 0)
    # NaN must reach the driver, which reports it; it never compares as better.
    value = xp.where(better | ~xp.isfinite(value), value, s.value)
    return s._replace(
        direction=where(better, scale(point, 1 / safe), s.direction),
        image=where(better, scale(image, 1 / safe), s.image),
        value=value,
    )
