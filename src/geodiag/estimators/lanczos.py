"""Lanczos for quadratic norms: S is the top eigenvalue of P⁻¹H, self-adjoint in ⟨·, P·⟩.

The stopping rule is on the relative residual ‖P⁻¹Hd − θd‖_P / |θ|, which is checked again on a
fresh product before a value is called exact. The iteration is in
:mod:`geodiag.solvers.lanczos.fused` where it can be compiled, else in
:mod:`geodiag.solvers.lanczos.host`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from geodiag.blocks import Blocks, epsilon, to_numpy
from geodiag.core.validation import is_whole
from geodiag.errors import ArgumentError, NormError, shown
from geodiag.estimators.base import Measurement, Options, SearchMode, SharpnessEstimator
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.oracles.wrappers import CountingOracle
from geodiag.results import Bound, SharpnessResult, Status, WarmStart
from geodiag.solvers import ravel
from geodiag.solvers.lanczos.fused import FLOOR, Declined, Numbers, Searched, Whole
from geodiag.solvers.lanczos.host import Krylov

RTOL = 1e-4
FREE_RTOL = 1e-8
BUDGET = 300
BASIS = 64
# Numbers in the basis, where none is asked for: from 16 million parameters on it has fewer
# directions, down to LEAST_BASIS.
ROOM, LEAST_BASIS = 2**30, 16
FREE_BASIS = 1024  # for given matrices: no restarts up to this size
LEAST = 8
LEAP = 2  # steps between looks at the residual ...
LEAPING = 32  # ... in a basis of at most so many; then every step is orthogonalised in full
# Of a relative spacing of fewer than 32 bits. The recurrence's own residual falls below what
# products are rounded by, and the value gains by it: at two spacings some ended 5 % too low.
COARSE, SINGLE = 0.5, float(np.finfo(np.float32).eps)
# A cold start is the gradient, which training turns to the top of the spectrum, and as much noise.
# A warm one, or one made anew, gets a little: exactly an eigenvector, it would hide larger ones.
COLD_NOISE, NOISE = 1.0, 0.02


@dataclass(frozen=True)
class Terms:
    """How far to go, and how."""

    rtol: float
    floor: float  # the relative residual that rounding leaves
    budget: int
    kept: int  # directions at most
    tracked: bool  # whether few products from the last witness will do
    noise: float
    leaping: int
    seed: int

    @property
    def least(self) -> int:
        """Steps before the first look at the residual."""
        return 1 if self.tracked else LEAST

    def draw(self, oracle: Oracle) -> np.ndarray[Any, Any] | None:
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
    the value is then a lower bound, but for every 20th measurement, which starts anew.

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
        terms = self._terms(oracle, start, options)
        counted, draw = CountingOracle(oracle), terms.draw(oracle)
        # Who wants to see the progress wants it while it happens.
        found = None if options.progress else _compiled(counted, norm, start, draw, terms)
        if found is not None and found.complete:
            return self._packed(counted, norm, found, terms, options)
        m = Measurement(oracle, norm, self, options)
        krylov = Krylov(m.oracle, norm, terms.kept)
        if found is not None:
            m.oracle.num_hvps = counted.num_hvps
            krylov.resume(found.answer, found.tridiagonal, found.numbers)
            return _iterated(m, krylov, terms, found.history)
        drawn = None if draw is None else {ravel.NAME: oracle.space.asarray(draw)}
        if drawn is None and terms.noise:
            drawn = oracle.space.random(m.rng)
        krylov.begin(m.steepest if start is None else start, drawn, terms.noise)
        return _iterated(m, krylov, terms)

    def _terms(self, oracle: Oracle, start: Blocks | None, options: Options) -> Terms:
        size, free = oracle.space.size, oracle.free_hvps
        most = self.basis or min(BASIS, max(LEAST_BASIS, ROOM // max(1, size)))
        kept = size if free and size <= FREE_BASIS else min(most, size)
        # An eigenvalue that has overtaken the tracked one is found by the next cold search.
        warm = options.age is not None and options.search_mode is not SearchMode.COLD
        tracked = start is not None and options.rtol is not None and warm
        return Terms(
            rtol=options.rtol or (FREE_RTOL if free else RTOL),
            floor=_floor(oracle),
            budget=options.max_hvps or (20 * size + BUDGET if free else BUDGET),
            kept=kept,
            tracked=tracked,
            noise=COLD_NOISE if start is None else 0.0 if tracked else NOISE,
            leaping=0 if free or size < 4 * LEAPING else min(kept, LEAPING),
            seed=options.seed,
        )

    def _packed(
        self, oracle: Oracle, norm: Norm, found: _Found, terms: Terms, options: Options
    ) -> SharpnessResult:
        n, view = found.numbers, ravel.Flat(oracle.space)
        residual = n.residual / abs(n.value) if n.value else math.inf if n.residual else 0.0
        age = options.next_age if terms.tracked else 0
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
            residual=residual,
            history=found.history,
            notes=oracle.notes,
            state=WarmStart(witness, age, repr(norm)).to_dict(),
        )
        if not n.done:
            return result
        scale = float(np.abs(found.tridiagonal[0]).max())
        return _judged(result, bool(n.invariant), int(n.count), scale, terms)

    def __repr__(self) -> str:
        return "Lanczos()" if self.basis is None else f"Lanczos(basis={self.basis})"


def _floor(oracle: Oracle) -> float:
    """The relative residual that rounding leaves."""
    rounding, own = oracle.precision, FLOOR * epsilon(oracle.point())
    return max(own, COARSE * rounding if rounding > SINGLE else FLOOR * rounding)


@dataclass(frozen=True)
class _Found:
    """What a compiled measurement answers, on the host."""

    answer: Searched
    numbers: Numbers
    tridiagonal: np.ndarray[Any, Any]  # (2, steps): alphas, betas
    history: tuple[float, ...]

    @property
    def complete(self) -> bool:
        """Whether it ended, and met nothing that must be raised."""
        n = self.numbers
        sound = n.gradient and n.sound and 0 <= n.length < math.inf and math.isfinite(n.loss)
        finite = n.finite and math.isfinite(n.value) and bool(np.all(np.isfinite(self.tridiagonal)))
        return bool(n.certified and sound and finite)


def _compiled(
    oracle: Oracle, norm: QuadraticNorm, start: Blocks | None, draw: Any, terms: Terms
) -> _Found | None:
    """The measurement as one program; None where nothing compiles, or blocks are large."""
    if not terms.leaping or ravel.of(oracle) is None:
        return None
    limit = min(terms.kept, LEAST if terms.tracked else terms.leaping)
    # Rows that a small budget leaves empty are read like others; few programs for all budgets.
    limit = min(limit, -(-(terms.budget - 1) // LEAST) * LEAST)
    program = Whole(norm, limit, terms.least, terms.noise)
    # Python's own numbers: adapters trace them, and move them faster than arrays.
    room = min(terms.budget - 1, limit + 1)  # more is no limit
    answer = oracle.run(program, start, draw, max(terms.rtol, terms.floor), room)
    if isinstance(answer, Declined):
        return None
    values = to_numpy(answer.numbers).astype(float)
    numbers = Numbers(*values[: len(Numbers._fields)].tolist())
    steps = int(numbers.count)
    table = np.reshape(values[len(Numbers._fields) :], (3, limit))[:, :steps]
    looked = min(terms.least, steps) - 1
    return _Found(answer, numbers, table[:2], tuple(table[2, looked:].tolist()))


def _iterated(
    m: Measurement, krylov: Krylov, terms: Terms, history: tuple[float, ...] = ()
) -> SharpnessResult:
    """The iteration on the host, from wherever the space is."""
    leaping, budget, seen = terms.leaping, terms.budget, list(history)
    done = False
    while not done and m.left(budget) > 0:
        if krylov.lost:
            krylov.forget(NOISE)
            leaping = 0
        steps = min(m.left(budget), LEAP if len(krylov) else terms.least)
        if len(krylov) + steps > leaping:
            leaping = 0  # from here on one by one: a leap follows on a leap
        residual = krylov.leap(steps) if leaping else krylov.extend()
        if krylov.lost and m.left(budget) > 0:
            continue
        seen.append(krylov.theta)
        m.report(krylov.theta)
        # A value near zero beside large |eigenvalues| resolves to rounding of these, no better.
        enough = max(
            max(terms.rtol, terms.floor) * abs(krylov.theta), terms.floor * krylov.scale / 5
        )
        # A small residual certifies an eigenvalue; that none is larger takes a few steps.
        done = krylov.invariant or (residual <= enough and len(krylov) >= terms.least)
    age = m.options.next_age if terms.tracked else 0
    result = m.finish(
        krylov.ritz(), Status.BUDGET, history=tuple(seen), image=krylov.image(), age=age
    )
    if not done:
        return result
    return _judged(result, krylov.invariant, len(krylov), krylov.scale, terms)


def _judged(
    result: SharpnessResult, invariant: bool, steps: int, scale: float, terms: Terms
) -> SharpnessResult:
    """What the residual of the fresh product makes of an iteration that thought itself done."""
    assert result.residual is not None
    settled = invariant and result.residual * abs(result.value) <= terms.floor * scale
    if result.residual <= 1.5 * terms.rtol or settled:
        bound = Bound.EXACT if invariant or steps >= LEAST else Bound.LOWER
        return replace(result, status=Status.CONVERGED, bound=bound)
    return replace(result, status=Status.PRECISION)
