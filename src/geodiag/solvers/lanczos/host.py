"""A Krylov space of P⁻¹H, self-adjoint in ⟨·, P·⟩, grown by one product at a time or by several.

Several at a time is the plain three-term recurrence, a program that an adapter may compile; the
next vector is then orthogonalised against all before it. One at a time is orthogonalised in full,
twice, and restarts from the best Ritz vectors where the basis is full.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    add,
    epsilon,
    scale,
    subtract,
    to_numpy,
)
from geodiag.core.batched import combine, cross, join, one, only
from geodiag.errors import NonFiniteError
from geodiag.norms.base import QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.solvers import ravel
from geodiag.solvers.lanczos.fused import INVARIANT, LOST, TILTED, Numbers, Searched
from geodiag.solvers.lanczos.recurrence import Begin, Combination, Direction, Leap, Recurrence, unit
from geodiag.solvers.rayleigh import safe_value

# For small matrices rows are kept in stacks of so many. Elsewhere they stay as they came: arrays of
# ever new shapes would be compiled for, again and again.
CHUNK = 16
Matrix = np.ndarray[Any, Any]


class Krylov:
    """A P-orthonormal basis Q and T = Qᵀ P (P⁻¹H) Q."""

    next: Blocks  # not yet of the basis
    _last: tuple[Blocks, Array]  # the last row, and its coupling to the next

    def __init__(self, oracle: Oracle, norm: QuadraticNorm, limit: int) -> None:
        """``limit``: directions kept at most."""
        self._asked, self._run = norm, oracle.run
        self.oracle, self.norm, self.view = ravel.quadratic(oracle, norm)
        self.limit, self.size = limit, oracle.space.size
        self.T = np.zeros((0, 0))
        self.theta = self.scale = float("nan")
        self.weights = np.zeros((0, 0))  # eigenvectors of T, the top one last
        self.invariant = False  # whether the basis spans all that the start can reach
        # Whether a leap has lost the orthogonality, as with 16-bit products.
        self.lost = False
        self._stacks: list[Blocks] = []
        self._image: Blocks | None = None  # H times the last row, after a leap

    def __len__(self) -> int:
        return len(self.T)

    def begin(self, start: Blocks, draw: Blocks | None, noise: float) -> None:
        """With ``start`` of unit norm and ``noise`` times a random direction of unit norm.

        ``draw``: the latter, on the flat view if there is one.
        """
        begun = self._run(Begin(self._asked, noise), start, draw)
        self.next, self._last = begun.first, (begun.before, begun.beta)

    def resume(self, found: Searched, tridiagonal: Matrix, numbers: Numbers) -> None:
        """Go on where a :class:`~geodiag.solvers.lanczos.fused.Whole` ended, with these numbers.

        Raises:
            NonFiniteError: one of its products was not finite.
        """
        alphas, betas = tridiagonal
        _check(alphas, betas, np.asarray(numbers.value))
        self.lost = bool(numbers.lost)
        steps = len(alphas)
        self._append({name: x[:steps, ...] for name, x in found.rows.items()})
        self._last, self._image = (found.last, found.beta), found.image
        self._settle(_tridiagonal(alphas, betas), found.following, float(betas[-1]))

    def leap(self, steps: int) -> float:
        """Take in ``steps`` directions; returns the absolute residual of the top Ritz pair."""
        j = len(self)
        before, beta = self._last
        leap: Leap = self._run(Recurrence(self._asked, steps), self.next, before, beta)
        alphas, betas = to_numpy(leap.alphas).astype(float), to_numpy(leap.betas).astype(float)
        _check(alphas, betas)
        rows = leap.basis
        # Where a coupling vanishes the space is invariant, and what follows is noise, or zero.
        least = INVARIANT * epsilon(rows) * max(np.abs(alphas).max(), betas.max())
        ends = np.flatnonzero(betas <= least)
        if ends.size:
            steps = int(ends[0]) + 1
            alphas, betas = alphas[:steps], betas[:steps]
            rows = {name: x[:steps, ...] for name, x in rows.items()}
        T = np.zeros((j + steps, j + steps))
        T[:j, :j] = self.T
        T[j:, j:] = _tridiagonal(alphas, betas)
        if j:
            T[j - 1, j] = T[j, j - 1] = float(beta)
        self._append(rows)
        self._last, self._image = (leap.last, leap.beta), leap.image
        self.lost = bool(np.abs(to_numpy(leap.slip)).max() > LOST) and not ends.size
        residual, tilted = self._settle(T, leap.following, float(betas[-1]))
        if tilted and not self.invariant and not self.lost:
            w, products = self._against_all(self.next)
            self.next, self.lost = unit(self.norm, w), bool(np.abs(products).max() > LOST)
        return residual

    def image(self) -> Blocks | None:
        """H times the one direction of the basis; None if there are more."""
        if len(self) != 1 or self._image is None:
            return None
        return self.view.full(self._image) if self.view else self._image

    def extend(self) -> float:
        """Take in one direction; returns as :meth:`leap`."""
        if len(self) == self.limit:
            self._restart()
        self._image = None
        self._append(one(self.next))
        w = self.norm.inverse_metric(self.oracle.hvp(self.next))
        coefficients = np.zeros(len(self) + 1)
        for _ in range(2):  # twice is enough
            w, products = self._against_all(w)
            coefficients += products
        length = safe_value(self.norm, w)
        beta = float(length)
        _check(coefficients, np.asarray(beta))
        j = len(self) + 1
        T = np.zeros((j, j))
        T[:-1, :-1] = self.T
        T[-1, :] = T[:, -1] = coefficients
        return self._settle(T, scale(w, 1 / length) if beta > 0 else w, beta)[0]

    def forget(self, noise: float) -> None:
        """Restart from the top Ritz vector plus ``noise`` times the first direction.

        The Ritz vector keeps the progress; the first direction has components outside of its space.
        """
        self.begin(self.ritz(), only(self._stacks[0]), noise)
        self._stacks, self.lost = [], False
        self.T = np.zeros((0, 0))

    def ritz(self, which: int = -1) -> Blocks:
        """A Ritz vector, as blocks of the parameters; the last is the top one."""
        weights, parts, at = self.weights[:, [which]].T, [], 0
        for rows in self._stacks:
            parts.append(self._array(weights[:, at : at + _count(rows)]))
            at += _count(rows)
        found: Direction = self._run(Combination(), tuple(self._stacks), tuple(parts))
        return found.direction

    def _array(self, host: Matrix) -> Array:
        return self.oracle.space.asarray(host)

    def _settle(self, T: Matrix, following: Blocks, beta: float) -> tuple[float, bool]:
        """The residual of the top Ritz pair, and whether rounding has turned a leap.

        It turns the recurrence towards converged Ritz vectors, by ε‖A‖/residual (Paige).
        """
        self.T, self.next = T, following
        values, self.weights = np.linalg.eigh(T)
        self.theta, self.scale = float(values[-1]), float(np.abs(values).max())
        eps = epsilon(following)
        self.invariant = len(T) == self.size or beta <= INVARIANT * eps * max(self.scale, beta)
        residuals = beta * np.abs(self.weights[-1, :])
        tilted = residuals.min() < TILTED * math.sqrt(eps) * self.scale
        return float(residuals[-1]), bool(tilted)

    def _against_all(self, w: Blocks) -> tuple[Blocks, Matrix]:
        """w less its components along the basis, and these."""
        metric, found = one(self.norm.metric(w)), []
        for rows in self._stacks:
            products = cross(metric, rows)
            w = subtract(w, only(combine(products, rows)))
            found.append(to_numpy(products[0, ...]).astype(float))
        return w, np.concatenate(found)

    def _append(self, rows: Blocks) -> None:
        held = self._stacks[-1] if self._stacks else None
        if self.oracle.free_hvps and held is not None and _count(held) < CHUNK:
            self._stacks[-1] = join(held, rows)
        else:
            self._stacks.append(rows)

    def _mix(self, weights: Matrix) -> Blocks:
        """Combinations of the basis: the rows of ``weights``."""
        total, at = None, 0
        for rows in self._stacks:
            k = _count(rows)
            part = weights[:, at : at + k]
            mixed = combine(self._array(part), rows)
            total = mixed if total is None else add(total, mixed)
            at += k
        assert total is not None
        return total

    def _restart(self) -> None:
        """Thick restart: keep the best quarter of the Ritz vectors, which T diagonalises."""
        keep = max(2, self.limit // 4)
        self._stacks = [self._mix(self.weights[:, : -keep - 1 : -1].T)]
        self.T = np.diag(np.linalg.eigvalsh(self.T)[::-1][:keep])


def _count(rows: Blocks) -> int:
    return int(next(iter(rows.values())).shape[0])


def _tridiagonal(alphas: Matrix, betas: Matrix) -> Matrix:
    T: Matrix = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    return T


def _check(*numbers: Matrix) -> None:
    if not all(np.all(np.isfinite(x)) for x in numbers):
        raise NonFiniteError(
            "a Hessian-vector product is not finite",
            got="NaN or infinity",
            do="check the parameters and the data; the training may have diverged",
        )
