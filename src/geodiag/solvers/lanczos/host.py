"""The Lanczos recurrence driven from the host: a basis of any size, kept orthogonal.

Its first steps come several at a time, as the plain recurrence, which an adapter may compile. After
them every vector is orthogonalised against all before it, and where the basis is full it restarts
from the best Ritz vectors (thick restart: Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from geodiag.blocks import Blocks, add, epsilon, positive, scale, to_numpy
from geodiag.core.stacks import Matrix, count_of, join, members, mix, only
from geodiag.errors import product_not_finite
from geodiag.norms.base import QuadraticNorm
from geodiag.solvers.lanczos.recurrence import (
    LOST,
    RitzPairs,
    State,
    Steps,
    begin,
    is_rounding,
    orthogonalised,
    ritz_pairs,
    tridiagonal,
)
from geodiag.solvers.rayleigh import safe_value

CHUNK = 16  # rows that are kept as one stack, where they are joined
Advance = Callable[[State, int], Steps]  # so many steps of the recurrence


class Krylov:
    """A P-orthonormal basis Q and T = Qᵀ P (P⁻¹H) Q."""

    state: State
    pairs: RitzPairs  # of T

    def __init__(
        self,
        advance: Advance,
        norm: QuadraticNorm,
        size: int,
        limit: int,
        *,
        together: int = 0,
        least: int = 1,
        joined: bool = False,
    ) -> None:
        """On vectors of ``size`` entries, of which at most ``limit`` are kept.

        ``together``: up to so many rows come several steps at a time. ``least``: rows from which a
        coupling that is rounding ends the space. ``joined``: rows are kept in few stacks, which is
        quicker for small vectors; compiled, every shape of a stack is another program.
        """
        self._advance, self.norm, self.size, self.limit = advance, norm, size, limit
        self.together, self._least, self._joined = together, least, joined
        self.T: Matrix = np.zeros((0, 0))
        self._coupling: Matrix = np.zeros(0)  # of the next vector to each row
        self._stacks: list[Blocks] = []
        self.invariant = False  # whether the basis spans all that the start can reach
        self.image: Blocks | None = None  # H times the one row, if there is but one

    def __len__(self) -> int:
        return len(self.T)

    @property
    def theta(self) -> float:
        """The top Ritz value."""
        return float(self.pairs.values[-1])

    @property
    def beta(self) -> float:
        """The coupling of the next vector to the last row."""
        return float(self._coupling[-1])

    def begin(self, start: Blocks, draw: Blocks | None, noise: float) -> None:
        """From ``start`` and ``noise`` times the random ``draw``, both taken at unit norm."""
        self.state = begin(self.norm, start, draw, noise)

    def grow(self, steps: int = 1) -> None:
        """Take in ``steps`` vectors; one, where every vector is orthogonalised.

        Raises:
            NonFiniteError: a product is not finite.
        """
        if len(self) + steps > self.together:
            self.together, steps = 0, 1
        if len(self) == self.limit:
            self._keep_best()
        self.take(self._advance(self.state, steps))

    def take(self, found: Steps, checked: bool = False) -> None:
        """Take in what the recurrence has made from :attr:`state`.

        ``checked``: a coupling that is rounding was seen to, and does not end these steps.

        Raises:
            NonFiniteError: one of its products was not finite.
        """
        alphas, betas = (to_numpy(x).astype(float) for x in (found.alphas, found.betas))
        require_finite(alphas, betas)
        steps, eps = len(betas), epsilon(found.rows)
        size = max(np.abs(self.T).max(initial=0.0), np.abs(alphas).max(), betas.max())
        ends = np.flatnonzero(is_rounding(betas, size, eps))
        k = steps if checked or not ends.size else int(ends[0]) + 1
        # Steps that come together are the plain recurrence, which may lose its orthogonality.
        overlap = float(to_numpy(found.overlap))
        if steps > 1 and (ends.size or overlap > math.sqrt(eps)):
            certain = ends.size or overlap > LOST
            k = min(k, self._orthogonal(found.rows, math.sqrt(eps) if certain else LOST / 10))
            if certain or k < steps:
                self.together = 0
        state = found.state
        if k < steps:
            last, after = (only(members(found.rows, i, i + 1)) for i in (k - 1, k))
            state = State(after, last, found.betas[k - 1])
        j, beta = len(self), float(betas[k - 1])
        self.image = found.image if self.together and j == 0 and steps == 1 else None
        T = np.zeros((j + k, j + k))
        T[:j, :j], T[j:, j:] = self.T, tridiagonal(alphas[:k], betas[:k])
        T[:j, j] = T[j, :j] = self._coupling
        self.T, self.state, self._coupling = T, state, np.zeros(j + k)
        self._append(members(found.rows, 0, k))
        whole = len(self) == self.size
        if not self.together and not whole:
            beta = self._orthogonalise(beta)
        self.pairs = ritz_pairs(T, np.asarray(beta), eps)
        if self.together and self.pairs.turned and not whole:
            beta = self._orthogonalise(beta)
        self._coupling[-1] = beta
        rounding = bool(is_rounding(beta, max(size, beta), eps))
        self.invariant = whole or (rounding and (beta == 0 or len(self) >= self._least))

    def _orthogonal(self, rows: Blocks, tolerance: float) -> int:
        """How many of these rows are orthogonal to all before them; one at least."""
        for i in range(1, count_of(rows)):
            row, before = only(members(rows, i, i + 1)), members(rows, 0, i)
            products = orthogonalised(self.norm, row, *self._stacks, before)[1]
            if float(np.abs(to_numpy(products)).max()) > tolerance:
                return i
        return count_of(rows)

    def _orthogonalise(self, beta: float) -> float:
        """Orthogonalise the next vector, of coupling ``beta``; returns what is left of that.

        What is removed are entries of T.
        """
        w, coupling, last = self.state.next, self.state.beta, self.T[:, -1].copy()
        for _ in range(3):  # twice is enough, unless it is nothing but rounding
            w, products = orthogonalised(self.norm, w, *self._stacks)
            removed, length = to_numpy(products).astype(float), safe_value(self.norm, w)
            require_finite(removed)
            last += beta * removed
            w, coupling = scale(w, 1 / positive(length)), coupling * length
            beta *= float(length)
            if np.abs(removed).max() < 0.1 or beta == 0:
                break
        self.T[:, -1] = self.T[-1, :] = last
        self.state = State(w, self.state.last, coupling)
        return beta

    def combined(self, weights: Matrix) -> Blocks:
        """The combination of the rows by ``weights``, (1, k)."""
        return only(self.combinations(weights))

    def combinations(self, weights: Matrix) -> Blocks:
        """Combinations of the rows, stacked: one by each row of ``weights``."""
        total, at = None, 0
        for rows in self._stacks:
            k = count_of(rows)
            mixed = mix(weights[:, at : at + k], rows)
            total = mixed if total is None else add(total, mixed)
            at += k
        assert total is not None
        return total

    def _append(self, rows: Blocks) -> None:
        held = self._stacks[-1] if self._stacks else None
        if self._joined and held is not None and count_of(held) < CHUNK:
            self._stacks[-1] = join(held, rows)
        else:
            self._stacks.append(rows)

    def _keep_best(self) -> None:
        """Keep the best quarter of the Ritz vectors, which T diagonalises."""
        keep = max(2, self.limit // 4)
        self._stacks = [self.combinations(self.pairs.vectors[:, : -keep - 1 : -1].T)]
        self.T = np.diag(self.pairs.values[::-1][:keep])
        # What couples the next vector to all of them is found when it is orthogonalised.
        self._coupling, nothing = np.zeros(keep), scale(self.state.last, 0)
        self.state = State(self.state.next, nothing, 0 * self.state.beta)


def require_finite(*numbers: Matrix) -> None:
    """Raise NonFiniteError for NaN and infinity."""
    if not all(np.all(np.isfinite(x)) for x in numbers):
        raise product_not_finite()
