"""Lanczos for quadratic norms: S is the top eigenvalue of P⁻¹H, self-adjoint in ⟨·, P·⟩.

The stopping rule is on the relative residual ‖P⁻¹Hd − θd‖_P / |θ|, which is checked again on a
fresh product before a value is called exact. The iteration is in :mod:`geodiag.estimators.krylov`.
"""

from __future__ import annotations

from dataclasses import replace

from geodiag.blocks import Blocks, epsilon
from geodiag.errors import NormError
from geodiag.estimators.base import Measurement, Options, SharpnessEstimator
from geodiag.estimators.krylov import Krylov
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.results import Bound, SharpnessResult, Status

RTOL = 1e-4
FREE_RTOL = 1e-8
BUDGET = 300
BASIS = 64
FREE_BASIS = 1024  # for given matrices: no restarts up to this size
LEAST = 8
LEAP = 2  # steps between looks at the residual ...
LEAPING = 32  # ... in a basis of at most so many; then every step is orthogonalised in full
CHECK = 20  # warm measurements from one cold check to the next
# A warm start is mixed with this much noise: exactly an eigenvector, it would hide larger ones.
NOISE = 0.02


class Lanczos(SharpnessEstimator):
    """The top eigenvalue in the geometry of a :class:`QuadraticNorm`.

    ``basis``: how many directions are kept at most (the memory, in parameter-sized vectors);
    beyond it the iteration restarts from the ``basis // 4`` best Ritz vectors.

    Exact means: the residual met ``rtol`` (default 1e-4; 1e-8 where products are free) after at
    least 8 products. The residual certifies an eigenvalue; that it is the largest follows from the
    random part of the start only with high probability (Kuczyński and Woźniakowski 1992).

    Warm, from an earlier result and with ``rtol`` given: as few products as meet it, one at least;
    the value is then a lower bound, but for every 20th measurement, which starts anew.
    """

    def __init__(self, basis: int = BASIS) -> None:
        self.basis = max(8, basis)

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
        m = Measurement(oracle, norm, self, options)
        rtol = options.rtol or (FREE_RTOL if oracle.free_hvps else RTOL)
        floor = 50 * epsilon(m.gradient)
        size, free = oracle.space.size, oracle.free_hvps
        budget = options.max_hvps or (20 * size + BUDGET if free else BUDGET)
        kept = size if free and size <= FREE_BASIS else min(self.basis, size)
        # An eigenvalue that has overtaken the tracked one shows at the next cold check.
        young = options.age is not None and options.age + 1 < CHECK
        tracked = start is not None and options.rtol is not None and young
        krylov = Krylov(m.oracle, norm, m.rng, kept, start, 0.0 if tracked else NOISE)
        leaping = 0 if free or size < 4 * LEAPING else min(kept, LEAPING)
        history: list[float] = []
        done = False
        while not done and m.left(budget) > 0:
            steps = min(m.left(budget), LEAP if len(krylov) else 1 if tracked else LEAST)
            if len(krylov) + steps > leaping:
                leaping = 0  # from here on one by one: a leap follows on a leap
            residual = krylov.leap(steps) if leaping else krylov.extend()
            if krylov.lost and m.left(budget) > 0:
                krylov.forget()
                leaping = 0
                continue
            history.append(krylov.theta)
            m.report(krylov.theta)
            # A value near zero beside large |eigenvalues| resolves to rounding of these, no better.
            enough = max(max(rtol, floor) * abs(krylov.theta), floor * krylov.scale / 5)
            # A small residual certifies an eigenvalue; that none is larger takes a few steps.
            sure = tracked or len(krylov) >= LEAST
            done = krylov.invariant or (residual <= enough and sure)
        age = options.age + 1 if tracked and options.age is not None else 0
        result = m.finish(
            krylov.ritz(), Status.BUDGET, history=tuple(history), image=krylov.image(), age=age
        )
        assert result.residual is not None
        if not done:
            return result
        settled = krylov.invariant and result.residual * abs(result.value) <= floor * krylov.scale
        if result.residual <= 1.5 * rtol or settled:
            bound = Bound.EXACT if krylov.invariant or len(krylov) >= LEAST else Bound.LOWER
            return replace(result, status=Status.CONVERGED, bound=bound)
        return replace(result, status=Status.PRECISION)

    def __repr__(self) -> str:
        return "Lanczos()" if self.basis == BASIS else f"Lanczos(basis={self.basis})"
