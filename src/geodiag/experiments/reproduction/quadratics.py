"""Section 5 of arXiv 2603.05002: non-Euclidean descent on L(w) = ½⟨w, Hw⟩ with H ≻ 0.

Theorem 5.1   η < 2/S: linear convergence, from every start.
Theorem 5.2   η > 2/S: divergence from a line of starts, w = c·d, with d a maximiser of S.

On the line the iterates are known: H d has d as its LMO and S as its dual norm, so w⁺ = (1 − ηS)w,
and the loss is multiplied by (1 − ηS)² at each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from geodiag.blocks import Blocks, axpy, dot, unflatten
from geodiag.norms import Norm, Preconditioned
from geodiag.oracles import Oracle
from geodiag.problems import as_norm, problem
from geodiag.sharpness import sharpness

SHAPES = {"matrix": (4, 3), "vector": (3,)}
SIZE = 15
NAMES = ("l2", "preconditioned", "linf", "block", "spectral")
STARTS = 6
STEPS = 300
# η in units of 2/S; the same distance below the threshold and above it.
BELOW, ABOVE = 0.95, 1.05
NEGLIGIBLE = 1e-24  # of the first loss: below it rounding dominates


@dataclass(frozen=True)
class Quadratic:
    """What descent in one norm did on one quadratic."""

    norm: str
    sharpness: float
    below: tuple[tuple[float, ...], ...]  # the losses from each random start, over the first one
    above: tuple[float, ...]  # the losses from the line, over the first one
    predicted: float  # (1 − ηS)²: the factor of the loss per step on the line

    @property
    def worst_factor(self) -> float:
        """The largest factor of the loss in one step below the threshold: converges if < 1."""
        return max(b / a for losses in self.below for a, b in pairwise(losses))

    @property
    def rate(self) -> float:
        """The slowest mean factor of the loss per step below the threshold."""
        return max(float(losses[-1] ** (1 / (len(losses) - 1))) for losses in self.below)

    @property
    def growth(self) -> float:
        """The mean factor of the loss per step on the line above the threshold."""
        return float(self.above[-1] ** (1 / (len(self.above) - 1)))


def quadratics(seed: int = 0, steps: int = STEPS) -> list[Quadratic]:
    """Descent in every norm on a random H of 15 × 15 with eigenvalues from 0.1 to 1."""
    rng = np.random.default_rng(seed)
    oracle = problem(random_hessian(rng), shapes=SHAPES).at()
    P = {n: np.exp(rng.uniform(-1, 1, shape)) for n, shape in SHAPES.items()}
    starts = [unflatten(rng.standard_normal(SIZE), SHAPES) for _ in range(STARTS)]
    out = []
    for name in NAMES:
        norm = (Preconditioned(P) if name == "preconditioned" else as_norm(name)).bind(oracle.space)
        d = maximiser(oracle, norm)
        S = float(dot(d, oracle.hvp(d)))
        below = tuple(_descend(oracle, norm, w, BELOW * 2 / S, steps) for w in starts)
        above = _descend(oracle, norm, d, ABOVE * 2 / S, steps // 5)
        out.append(Quadratic(name, S, below, above, (1 - 2 * ABOVE) ** 2))
    return out


def random_hessian(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A symmetric matrix with eigenvalues from 0.1 to 1, in a random basis."""
    basis, _ = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))
    H = basis @ np.diag(np.geomspace(0.1, 1.0, SIZE)) @ basis.T
    symmetric: np.ndarray[Any, Any] = (H + H.T) / 2  # to the last bit
    return symmetric


def maximiser(oracle: Oracle, norm: Norm) -> Blocks:
    """A direction of unit norm with d = lmo(Hd), at which ⟨d, Hd⟩ is S."""
    d = sharpness(oracle, norm).direction
    for _ in range(300):  # to the fixed point; ⟨d, Hd⟩ cannot decrease, since H ≻ 0
        d = norm.lmo(oracle.hvp(d))
    return d


def _descend(oracle: Oracle, norm: Norm, w: Blocks, lr: float, steps: int) -> tuple[float, ...]:
    g = oracle.hvp(w)
    losses = [float(dot(w, g)) / 2]
    for _ in range(steps):
        step = norm.lmo(g)
        w = axpy(-lr * float(dot(g, step)), step, w)
        g = oracle.hvp(w)
        losses.append(float(dot(w, g)) / 2)
        if losses[-1] < NEGLIGIBLE * losses[0]:
            break
    return tuple(loss / losses[0] for loss in losses)
