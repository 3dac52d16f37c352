"""Lanczos for quadratic norms: S is the top eigenvalue of P⁻¹H, self-adjoint in ⟨·, P·⟩.

Full reorthogonalisation (twice), thick restarts, and a stopping rule on the relative residual
‖P⁻¹Hd − θd‖_P / |θ|, which is checked again on a fresh product before a value is called exact.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from geodiag.blocks import Blocks, array_namespace, axpy, dot, epsilon, scale, to_numpy, zeros_like
from geodiag.errors import NonFiniteError, NormError
from geodiag.estimators.base import Measurement, Options, SharpnessEstimator, safe_value
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.results import Bound, SharpnessResult, Status

RTOL = 1e-4
FREE_RTOL = 1e-8
BUDGET = 300
BASIS = 64
FREE_BASIS = 1024  # for given matrices: no restarts up to this size
LEAST = 8
# A warm start is mixed with this much noise: exactly an eigenvector, it would hide larger ones.
NOISE = 0.02


class Lanczos(SharpnessEstimator):
    """The top eigenvalue in the geometry of a :class:`QuadraticNorm`.

    ``basis``: how many directions are kept at most (the memory, in parameter-sized vectors);
    beyond it the iteration restarts from the ``basis // 4`` best Ritz vectors.

    Exact means: the residual met ``rtol`` (default 1e-4; 1e-8 where products are free) after at
    least 8 products. The residual certifies an eigenvalue; that it is the largest follows from the
    random part of the start only with high probability (Kuczyński and Woźniakowski 1992).
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
        size = oracle.space.size
        free = oracle.free_hvps
        budget = options.max_hvps or (20 * size + BUDGET if free else BUDGET)
        kept = size if free and size <= FREE_BASIS else min(self.basis, size)
        krylov = _Krylov(norm, m.unit(_first(m, start)), kept, size)
        history = []
        done = False
        while not done and m.left(budget) > 0:
            residual = krylov.extend(m)
            history.append(krylov.theta)
            m.report(krylov.theta)
            # A value near zero beside large |eigenvalues| resolves to rounding of these, no better.
            enough = max(max(rtol, floor) * abs(krylov.theta), floor * krylov.scale / 5)
            # A small residual certifies an eigenvalue; that none is larger takes a few steps.
            done = krylov.invariant or (residual <= enough and len(history) >= LEAST)
        result = m.finish(krylov.ritz(), Status.BUDGET, history=tuple(history))
        assert result.residual is not None
        if not done:
            return result
        settled = krylov.invariant and result.residual * abs(result.value) <= floor * krylov.scale
        if result.residual <= 1.5 * rtol or settled:
            return replace(result, status=Status.CONVERGED, bound=Bound.EXACT)
        return replace(result, status=Status.PRECISION)

    def __repr__(self) -> str:
        return "Lanczos()" if self.basis == BASIS else f"Lanczos(basis={self.basis})"


class _Krylov:
    """A P-orthonormal basis Q and T = Qᵀ P (P⁻¹H) Q, grown by one product at a time."""

    def __init__(self, norm: QuadraticNorm, first: Blocks, limit: int, size: int) -> None:
        self.norm, self.next, self.limit, self.size = norm, first, limit, size
        self.basis: list[Blocks] = []
        self.T = np.zeros((0, 0))
        self.theta = self.scale = float("nan")
        self.weights = np.zeros((0, 0))  # eigenvectors of T, the top one last
        self.invariant = False  # whether the basis spans all that the start can reach

    def extend(self, m: Measurement) -> float:
        """Take in the next direction; returns the absolute residual of the top Ritz pair."""
        if len(self.basis) == self.limit:
            self._restart()
        self.basis.append(self.next)
        w = self.norm.inverse_metric(m.oracle.hvp(self.next))
        coefficients = np.zeros(len(self.basis))
        for _ in range(2):  # twice is enough
            pw = self.norm.metric(w)
            products = [dot(q, pw) for q in self.basis]
            xp = array_namespace(products[0])
            coefficients += to_numpy(xp.stack(products))
            for q, c in zip(self.basis, products, strict=True):
                w = axpy(-c, q, w)
        length = safe_value(self.norm, w)
        beta = float(length)
        if not np.all(np.isfinite(coefficients)) or not np.isfinite(beta):
            raise NonFiniteError(
                "a Hessian-vector product is not finite",
                got="NaN or infinity",
                do="check the parameters and the data; the training may have diverged",
            )
        j = len(self.basis)
        T = np.zeros((j, j))
        T[:-1, :-1] = self.T
        T[-1, :] = T[:, -1] = coefficients
        self.T = T
        values, self.weights = np.linalg.eigh(T)
        self.theta, self.scale = float(values[-1]), float(np.abs(values).max())
        eps = epsilon(w)
        self.invariant = j == self.size or beta <= 10 * eps * max(self.scale, beta)
        self.next = scale(w, 1 / length) if beta > 0 else w
        return beta * abs(float(self.weights[-1, -1]))

    def ritz(self, which: int = -1) -> Blocks:
        """A Ritz vector; the last is the top one."""
        out = zeros_like(self.basis[0])
        for c, q in zip(self.weights[:, which], self.basis, strict=True):
            out = axpy(float(c), q, out)
        return out

    def _restart(self) -> None:
        """Thick restart: keep the best quarter of the Ritz vectors, which T diagonalises."""
        keep = max(2, self.limit // 4)
        self.basis, values = [self.ritz(-i) for i in range(1, keep + 1)], np.linalg.eigvalsh(self.T)
        self.T = np.diag(values[::-1][:keep])


def _first(m: Measurement, start: Blocks | None) -> Blocks:
    if start is None:
        return m.random()
    return axpy(NOISE, m.random(), m.unit(start))
