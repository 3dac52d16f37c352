"""A Krylov space of P⁻¹H, self-adjoint in ⟨·, P·⟩, grown by one product at a time or by several.

Several at a time is the plain three-term recurrence, a program that an adapter may compile; the
next vector is then orthogonalised against all before it. One at a time is orthogonalised in full,
twice, and restarts from the best Ritz vectors where the basis is full.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    array_namespace,
    axpy,
    dot,
    epsilon,
    scale,
    subtract,
    to_numpy,
)
from geodiag.errors import NonFiniteError
from geodiag.estimators import flat
from geodiag.estimators.ends import safe_value
from geodiag.estimators.segment import positive
from geodiag.estimators.stacks import combine, cross, join, one, only
from geodiag.norms.base import QuadraticNorm
from geodiag.oracles.base import Oracle

# For small matrices rows are kept in stacks of so many. Elsewhere they stay as they came: arrays of
# ever new shapes would be compiled for, again and again.
CHUNK = 16
TILTED = 10.0
LOST = 0.01
Matrix = np.ndarray[Any, Any]


class Leap(NamedTuple):
    """Some steps of the recurrence."""

    basis: Blocks  # (steps, …)
    alphas: Array  # (steps,): ⟨q, H q⟩
    betas: Array  # (steps,): the length of what came next
    following: Blocks  # not yet of the basis
    image: Blocks  # H times the last of the basis
    num_hvps: Array


@dataclass(frozen=True)
class Recurrence:
    """``steps`` of the three-term recurrence, on the flat view if there is one."""

    norm: QuadraticNorm
    steps: int

    @property
    def key(self) -> Hashable | None:
        norm = self.norm.key
        return None if norm is None else (type(self), norm, self.steps)

    def __call__(self, oracle: Oracle, first: Blocks, before: Blocks, beta: Array) -> Leap:
        oracle, norm, _ = flat.quadratic(oracle, self.norm)

        def step(state: tuple[Blocks, Blocks, Array, Blocks]) -> Any:
            q, previous, coupling, _ = state
            image = oracle.hvp(q)
            alpha = dot(q, image)
            w = norm.inverse_metric(image)
            w = subtract(w, axpy(alpha, q, scale(previous, coupling)))
            w = axpy(-dot(norm.metric(q), w), q, w)  # once more against the last: rounding
            length = norm.value(w)
            row = {"alpha": alpha, "beta": length}
            return (scale(w, 1 / positive(length)), q, length, image), (q, row)

        state, (basis, rows) = oracle.scan(step, (first, before, beta, before), self.steps)
        xp = array_namespace(beta)
        spent = xp.full((), self.steps, dtype=xp.int32)
        return Leap(basis, rows["alpha"], rows["beta"], state[0], state[3], spent)


class Krylov:
    """A P-orthonormal basis Q and T = Qᵀ P (P⁻¹H) Q."""

    def __init__(
        self,
        oracle: Oracle,
        norm: QuadraticNorm,
        rng: np.random.Generator,
        limit: int,
        start: Blocks | None = None,
        noise: float = 0.0,
    ) -> None:
        """The space of a random direction or, of unit norm, of ``start`` with some ``noise``."""
        self._program_norm, self._run = norm, oracle.run
        self.oracle, self.norm, self.view = flat.quadratic(oracle, norm)
        self.limit, self.size = limit, oracle.space.size
        if start is not None:
            start = self.view.flat(start) if self.view else start
        if start is None or noise:
            draw = self.view.random(oracle.space, rng) if self.view else oracle.space.random(rng)
            draw = self._unit(draw)
            start = draw if start is None else axpy(noise, draw, start)
        self.next = self._unit(start)
        self.T = np.zeros((0, 0))
        self.theta = self.scale = float("nan")
        self.weights = np.zeros((0, 0))  # eigenvectors of T, the top one last
        self.invariant = False  # whether the basis spans all that the start can reach
        # Whether a leap has lost the orthogonality, as with 16-bit products.
        self.lost = False
        self.image: Blocks | None = None  # H times the last row, after a leap
        self._stacks: list[Blocks] = []
        self._last: tuple[Blocks, Array] | None = None  # of a leap: its last row, and β

    def __len__(self) -> int:
        return len(self.T)

    def leap(self, steps: int) -> float:
        """Take in ``steps`` directions; returns the absolute residual of the top Ritz pair."""
        j = len(self)
        zero = dot(self.next, self.next) * 0
        before, beta = self._last or (scale(self.next, 0), zero)
        leap: Leap = self._run(Recurrence(self._program_norm, steps), self.next, before, beta)
        alphas, betas = to_numpy(leap.alphas).astype(float), to_numpy(leap.betas).astype(float)
        _check(alphas, betas)
        # Where a coupling vanishes the space is invariant, and what follows is noise, or zero.
        least = 10 * epsilon(leap.basis) * max(np.abs(alphas).max(), betas.max())
        ends = np.flatnonzero(betas <= least)
        steps = int(ends[0]) + 1 if ends.size else steps
        alphas, betas = alphas[:steps], betas[:steps]
        T = np.zeros((j + steps, j + steps))
        T[:j, :j] = self.T
        T[j:, j:] = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
        if j:
            T[j - 1, j] = T[j, j - 1] = float(beta)
        rows = {name: x[:steps, ...] for name, x in leap.basis.items()}
        self._append(rows)
        last = {name: x[steps - 1, ...] for name, x in rows.items()}
        self._last = last, leap.betas[steps - 1]
        self.image = self.view.full(leap.image) if self.view else leap.image
        return self._settle(T, leap.following, float(betas[-1]))

    def extend(self) -> float:
        """Take in one direction; returns as :meth:`leap`."""
        if len(self) == self.limit:
            self._restart()
        self._last = self.image = None
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
        return self._settle(T, scale(w, 1 / length) if beta > 0 else w, beta)

    def forget(self) -> None:
        """Begin anew from the first direction."""
        self.next = only(self._stacks[0])
        self._stacks, self._last, self.lost = [], None, False
        self.T = np.zeros((0, 0))

    def ritz(self, which: int = -1) -> Blocks:
        """A Ritz vector, as blocks of the parameters; the last is the top one."""
        found = only(self._mix(self.weights[:, [which]].T))
        return self.view.full(found) if self.view else found

    def _unit(self, d: Blocks) -> Blocks:
        return scale(d, 1 / positive(self.norm.value(d)))

    def _settle(self, T: Matrix, following: Blocks, beta: float) -> float:
        self.T = T
        values, self.weights = np.linalg.eigh(T)
        self.theta, self.scale = float(values[-1]), float(np.abs(values).max())
        eps = epsilon(following)
        self.invariant = len(T) == self.size or beta <= 10 * eps * max(self.scale, beta)
        self.next = following
        residuals = beta * np.abs(self.weights[-1, :])
        # Rounding turns the recurrence towards converged Ritz vectors, by ε‖A‖/residual (Paige).
        tilted = residuals.min() < TILTED * math.sqrt(eps) * self.scale
        leapt = self._last is not None and not self.invariant
        if leapt and (tilted or len(self._stacks) == 1):
            w, products = self._against_all(following)
            self.next, self.lost = self._unit(w), bool(np.abs(products).max() > LOST)
        return float(residuals[-1])

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
            example = next(iter(rows.values()))
            xp = array_namespace(example)
            part = weights[:, at : at + k]
            array = self.oracle.space.asarray(part)
            mixed = combine(xp.astype(array, example.dtype), rows)
            total = mixed if total is None else axpy(1.0, mixed, total)
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


def _check(*numbers: Matrix) -> None:
    if not all(np.all(np.isfinite(x)) for x in numbers):
        raise NonFiniteError(
            "a Hessian-vector product is not finite",
            got="NaN or infinity",
            do="check the parameters and the data; the training may have diverged",
        )
