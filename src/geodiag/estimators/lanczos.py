"""Lanczos for quadratic norms: S is the top eigenvalue of P⁻¹H, self-adjoint in ⟨·, P·⟩.

The search ends by the relative residual ‖P⁻¹Hd − θd‖_P / |θ|, which a fresh product at the witness
must confirm before a value is called exact. The recurrence runs in
:mod:`geodiag.solvers.lanczos.fused` where it can be compiled, else in
:mod:`geodiag.solvers.lanczos.host`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from geodiag.blocks import Blocks, epsilon, to_numpy
from geodiag.core.stacks import Matrix, members
from geodiag.core.validation import is_whole
from geodiag.errors import ArgumentError, NormError, shown
from geodiag.estimators.base import Measurement, Options, SearchMode, SharpnessEstimator
from geodiag.estimators.budgets import LANCZOS_BUDGET
from geodiag.estimators.distance import distance_note, further_search
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.oracles.wrappers import CountingOracle
from geodiag.results import Bound, Searched, SharpnessResult, Status, WarmStart, relative
from geodiag.solvers import ravel
from geodiag.solvers.lanczos.fused import Answer, FusedLanczos, Summary
from geodiag.solvers.lanczos.host import Krylov
from geodiag.solvers.lanczos.recurrence import ROUNDING, Recurrence, Steps, tolerated

RTOL = 1e-4
FREE_RTOL = 1e-8
BASIS = 64
# Numbers in the basis, where none is asked for: from 16 million parameters on it has fewer
# directions, down to LEAST_BASIS.
ROOM, LEAST_BASIS = 2**30, 16
FREE_BASIS = 1024  # for given matrices: no restarts up to this size
LEAST = 8  # steps before a residual is trusted to be that of the top eigenvalue
TOGETHER = 2  # steps between two computations of the residual ...
PLAIN = 32  # ... in a basis of at most so many; beyond it every vector is orthogonalised
RESIDUAL = 50.0  # machine epsilons: a relative residual that is rounding
# Of a spacing of fewer than 32 bits. The recurrence's own residual falls below what products are
# rounded by, and the value gains by it: at two spacings some ended 5 % too low.
COARSE, SINGLE = 0.5, float(np.finfo(np.float32).eps)
# A cold start is the gradient, which training turns to the top of the spectrum, and as much noise.
# A warm one gets a little: exactly an eigenvector, it would hide larger ones.
COLD_NOISE, NOISE = 1.0, 0.02
UNLIKELY = 10.0  # a random component this many times smaller than usual is not reckoned with


@dataclass(frozen=True)
class Terms:
    """How far to go, and how."""

    rtol: float
    floor: float  # the relative residual that rounding leaves
    budget: int
    kept: int  # directions at most
    tracked: bool  # whether few products from the last witness will do
    noise: float
    together: int
    size: int
    seed: int

    @property
    def least(self) -> int:
        """Steps before the residual may end the search."""
        return 1 if self.tracked else LEAST

    @property
    def needed(self) -> float:
        """The relative residual at which the search ends."""
        return max(self.rtol, self.floor)

    def settled(self, eps: float) -> int:
        """Steps from which a coupling that is rounding ends the search.

        A top eigenvector of component c in the start couples by c times the relative gap. Where
        that may be rounding at a gap of ``rtol``, the steps go on through rounding, which lets it
        grow. c is about ``noise``/√n.
        """
        hidden = ROUNDING * eps * UNLIKELY * math.sqrt(self.size)
        return self.least if hidden > self.needed * self.noise else 1

    def draw(self, oracle: Oracle) -> Matrix | None:
        """The random part of the start on the flat view, None where there is none."""
        view = ravel.of(oracle)
        return view.draw(np.random.default_rng(self.seed)) if view and self.noise else None


class Lanczos(SharpnessEstimator):
    """The top eigenvalue in the geometry of a :class:`QuadraticNorm`.

    ``basis``: how many directions are kept at most; beyond it the iteration restarts from the
    ``basis // 4`` best Ritz vectors. By default 64, and fewer, down to 16, from 16 million
    parameters on. Memory, in parameter-sized vectors: 7/4 of that and 15 (docs/memory.md).

    Exact means: the residual met ``rtol`` (default 1e-4; 1e-8 where products are free) after at
    least 8 products. The residual certifies an eigenvalue; that it is the largest follows from the
    random part of the start only with high probability (Kuczyński and Woźniakowski 1992).

    Warm, from an earlier result and with ``rtol`` given: as few products as meet it, one at least;
    the value is then a lower bound, but for every 20th measurement, which is a cold search. One
    follows too if the point is far from that of the last search (docs/results.md).

    Examples:
        >>> result = geodiag.sharpness(np.diag([3.0, 1.0]), estimator=geodiag.estimators.Lanczos())
        >>> round(result.value, 6), result.bound.name
        (3.0, 'EXACT')
    """

    def __init__(self, basis: int | None = None) -> None:
        if basis is not None and not is_whole(basis):
            raise ArgumentError("basis= must be a number of directions", got=shown(basis))
        self.basis = None if basis is None else max(8, int(basis))

    def estimate(
        self,
        oracle: Oracle,
        norm: Norm,
        start: Blocks | None = None,
        options: Options = Options(),
    ) -> SharpnessResult:
        if not isinstance(norm, QuadraticNorm):
            raise NormError(
                f"Lanczos needs a quadratic norm, and {norm!r} is not one",
                do='use estimator="auto", or Ascent()',
            )
        result = self._one_search(oracle, norm, start, options)
        # In a tracked search the first Ritz value is that of the old witness. Of the loss alone
        # nothing follows: if the witness turned with it, the residual says so.
        values = (*result.history[:1], result.value)
        further = further_search(options, values, math.nan) if result.state["age"] else None
        left = (options.max_hvps or LANCZOS_BUDGET) - result.num_hvps
        if further is not SearchMode.DISTANT or left <= LEAST:
            return result
        again = replace(options, mode=SearchMode.DISTANT, max_hvps=options.max_hvps and left)
        found = self._one_search(oracle, norm, result.direction, again)
        spent, found = result.num_hvps + found.num_hvps, max(found, result, key=float)
        note = distance_note(options, result.value, result.loss)
        return replace(found, num_hvps=spent, notes=(*found.notes, note))

    def _one_search(
        self, oracle: Oracle, norm: QuadraticNorm, start: Blocks | None, options: Options
    ) -> SharpnessResult:
        """One search, from the start and its noise."""
        terms = self._terms(oracle, start, options)
        counted, draw = CountingOracle(oracle), terms.draw(oracle)
        # Who wants to see the progress wants it while it happens.
        found = None if options.progress else _compiled(counted, norm, start, draw, terms)
        if found is not None and found.complete:
            return self._packed(counted, norm, found, terms, options)
        m = Measurement(oracle, norm, self, options)
        _, seen, view = ravel.quadratic(m.oracle, norm)

        def full(d: Blocks) -> Blocks:
            return view.full(d) if view else d

        krylov = Krylov(
            lambda state, steps: m.oracle.run(Recurrence(norm, steps), state),
            seen,
            terms.size,
            terms.kept,
            together=terms.together,
            least=terms.settled(epsilon(m.gradient)),
            joined=oracle.free_hvps,
        )
        history: tuple[float, ...] = ()
        if found is not None:
            m.oracle.num_hvps, history = counted.num_hvps, found.history
            krylov.take(found.steps, checked=True)
        else:
            first = m.steepest if start is None else start
            drawn = None if draw is None else {ravel.NAME: oracle.space.asarray(draw)}
            if drawn is None and terms.noise:
                drawn = oracle.space.random(m.rng)
            krylov.begin(view.flat(first) if view else first, drawn, terms.noise)
        done, history = _search(m, krylov, terms, history)
        image = None if krylov.image is None else full(krylov.image)
        age = options.next_age if terms.tracked else 0
        witness = full(krylov.combined(krylov.pairs.vectors[:, -1:].T))
        result = m.finish(
            witness,
            Status.BUDGET,
            history=history,
            image=image,
            age=age,
            searched=options.searched if terms.tracked else None,
        )
        if not done:
            return result
        size = float(krylov.pairs.size)
        return _judged(result, terms, krylov.theta, size, len(krylov), krylov.invariant)

    def _terms(self, oracle: Oracle, start: Blocks | None, options: Options) -> Terms:
        size, free = oracle.space.size, oracle.free_hvps
        most = self.basis or min(BASIS, max(LEAST_BASIS, ROOM // max(1, size)))
        kept = size if free and size <= FREE_BASIS else min(most, size)
        # An eigenvalue that has overtaken the tracked one is found by the next cold search.
        warm = options.age is not None and not options.search_mode.cold
        tracked = start is not None and options.rtol is not None and warm
        near = options.mode is not SearchMode.DISTANT
        # Products in 16 bits make the plain recurrence lose its orthogonality in a few steps.
        coarse = oracle.precision > SINGLE and not tracked
        return Terms(
            rtol=options.rtol or (FREE_RTOL if free else RTOL),
            floor=_floor(oracle),
            budget=options.max_hvps or (20 * size + LANCZOS_BUDGET if free else LANCZOS_BUDGET),
            kept=kept,
            tracked=tracked,
            noise=0.0 if tracked else NOISE if start is not None and near else COLD_NOISE,
            together=0 if free or coarse or size < 4 * PLAIN else min(kept, PLAIN),
            size=size,
            seed=options.seed,
        )

    def _packed(
        self, oracle: Oracle, norm: Norm, found: _Found, terms: Terms, options: Options
    ) -> SharpnessResult:
        n, view = found.summary, ravel.Flat(oracle.space)
        age = options.next_age if terms.tracked else 0
        searched = options.searched if terms.tracked else Searched(n.value, n.loss)
        witness = view.full({ravel.NAME: to_numpy(found.answer.witness[ravel.NAME])})
        result = SharpnessResult(
            value=n.value,
            direction=found.answer.direction,
            bound=Bound.LOWER,
            status=Status.BUDGET,
            norm=repr(norm),
            estimator=repr(self),
            num_hvps=int(found.answer.num_hvps),
            dual_norm=n.dual_norm,
            loss=n.loss,
            residual=relative(n.residual, n.value),
            history=found.history,
            notes=oracle.notes,
            state=WarmStart(witness, age, repr(norm), searched).to_dict(),
        )
        if not n.done:
            return result
        theta, size = found.history[-1], float(np.abs(found.alphas).max())
        return _judged(result, terms, theta, size, int(n.count), bool(n.invariant))

    def __repr__(self) -> str:
        return "Lanczos()" if self.basis is None else f"Lanczos(basis={self.basis})"


def _floor(oracle: Oracle) -> float:
    """The relative residual that rounding leaves."""
    rounding, own = oracle.precision, RESIDUAL * epsilon(oracle.point())
    return max(own, COARSE * rounding if rounding > SINGLE else RESIDUAL * rounding)


@dataclass(frozen=True)
class _Found:
    """What a compiled measurement answers, on the host."""

    answer: Answer
    summary: Summary
    alphas: Matrix
    betas: Matrix
    history: tuple[float, ...]

    @property
    def complete(self) -> bool:
        """Whether it ended, and met nothing that must be raised."""
        n = self.summary
        sound = n.gradient and n.sound and 0 <= n.length < math.inf
        known = np.concatenate([self.alphas, self.betas, [n.loss, n.value]])
        return bool(n.certified and sound and n.finite and np.all(np.isfinite(known)))

    @property
    def steps(self) -> Steps:
        """Its recurrence, for the host to continue."""
        a = self.answer
        return Steps(
            members(a.rows, 0, len(self.alphas)), self.alphas, self.betas, a.image, a.state,
            np.asarray(self.summary.overlap), a.num_hvps,
        )  # fmt: skip


def _compiled(
    oracle: Oracle, norm: QuadraticNorm, start: Blocks | None, draw: Any, terms: Terms
) -> _Found | None:
    """The measurement as one program; None where nothing compiles, or blocks are large."""
    if not terms.together or ravel.of(oracle) is None:
        return None
    limit = min(terms.kept, LEAST if terms.tracked else terms.together)
    # Rows that a small budget leaves empty are read like others; few programs for all budgets.
    limit = min(limit, -(-(terms.budget - 1) // LEAST) * LEAST)
    program = FusedLanczos(norm, limit, terms.least, terms.noise)
    # Python's own numbers: adapters trace them, and move them faster than arrays.
    budget = min(terms.budget - 1, limit + 1)  # more is no limit
    settled = terms.settled(epsilon(oracle.point()))
    answer = oracle.run(program, start, draw, terms.needed, terms.floor, settled, budget)
    if answer is None:
        return None
    values = to_numpy(answer.numbers).astype(float)
    summary = Summary(*values[: len(Summary._fields)].tolist())
    steps = int(summary.count)
    table = np.reshape(values[len(Summary._fields) :], (3, limit))[:, :steps]
    first = min(terms.least, steps) - 1
    return _Found(answer, summary, table[0], table[1], tuple(table[2, first:].tolist()))


def _search(
    m: Measurement, krylov: Krylov, terms: Terms, history: tuple[float, ...]
) -> tuple[bool, tuple[float, ...]]:
    """Grow the space; returns whether the tolerance was met, and the top Ritz values."""
    seen, done = list(history), False
    while not done and m.left(terms.budget) > 0:
        krylov.grow(min(m.left(terms.budget), TOGETHER if len(krylov) else terms.least))
        seen.append(krylov.theta)
        m.report(krylov.theta)
        pairs, needed = krylov.pairs, terms.needed
        enough = tolerated(pairs.values[-1], pairs.size, needed, terms.floor)
        # A small residual certifies an eigenvalue; that none is larger takes a few steps.
        met = pairs.residual <= enough and len(krylov) >= terms.least
        done = krylov.invariant or bool(met)
    return done, tuple(seen)


def _judged(
    result: SharpnessResult, terms: Terms, theta: float, size: float, steps: int, invariant: bool
) -> SharpnessResult:
    """A result whose search met its tolerance, with the status that its fresh product supports.

    ``theta``: the top Ritz value; ``size``: the largest |Ritz value|, or near it.
    """
    assert result.residual is not None
    rounding = terms.floor * size
    # A value that is not the Ritz value contradicts the recurrence.
    agrees = abs(result.value - theta) <= 1.5 * terms.needed * abs(result.value) + rounding
    exhausted = invariant and result.residual * abs(result.value) <= rounding
    if not agrees or not (result.residual <= 1.5 * terms.rtol or exhausted):
        return replace(result, status=Status.PRECISION)
    # Without a random part the start may be orthogonal to a larger eigenvector, for any number of
    # steps short of the whole space.
    sure = steps >= terms.size or (terms.noise > 0 and (invariant or steps >= LEAST))
    return replace(result, status=Status.CONVERGED, bound=Bound.EXACT if sure else Bound.LOWER)
