"""Matrices and norms whose sharpness is known in closed form or by enumeration.

Quadratic norms: an eigenvalue. ℓ∞ and ℓ1: a search over the faces of the ball. H = v vᵀ: S = ‖v‖*²
in every norm, with ‖v‖* from singular values, maxima and sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from geodiag.norms.base import Norm
from geodiag.norms.composite import L2Over, MaxOver, Scaled, SumOver
from geodiag.norms.matrix import Nuclear, Spectral
from geodiag.norms.quadratic import L2, Preconditioned
from geodiag.norms.vector import L1, Linf

Vector: TypeAlias = np.ndarray[Any, Any]

SHAPES: Mapping[str, tuple[int, ...]] = {"W": (2, 2), "b": (2,)}
NEGATIVE = -(np.eye(3) + 0.5 * np.ones((3, 3)))


@dataclass(frozen=True)
class Case:
    """A matrix (as blocks of ``shapes``), a norm, and the sharpness."""

    label: str
    H: Vector
    norm: Norm
    truth: float
    shapes: Mapping[str, tuple[int, ...]]


def cases() -> Iterator[Case]:
    """All of them, the same at each call."""
    rng = np.random.default_rng(0)
    yield from _one_block(rng)
    yield from _rank_one(rng)
    A = _symmetric(rng, 3, definite=True)
    # ⟨D, D A⟩ over 2 × 3 matrices: rows of D do not interact.
    top = float(np.sort(np.linalg.eigvalsh(A))[-2:].sum())
    yield Case("⟨D, DA⟩", np.kron(np.eye(2), A), Spectral(), top, {"D": (2, 3)})
    mixed = np.array([[0.0, 1.0], [1.0, 0.0]])
    yield Case("a mixed pair", mixed, SumOver(L2()), 0.5, {"a": (1,), "b": (1,)})


def _one_block(rng: np.random.Generator) -> Iterator[Case]:
    """One block ``x``; every matrix in ℓ2, preconditioned, ℓ∞ and ℓ1."""
    matrices = {
        "a positive definite matrix": _symmetric(rng, 4, definite=True),
        "an indefinite matrix": _symmetric(rng, 4),
        "diag(1, −5)": np.diag([1.0, -5.0]),
        "a negative definite matrix": NEGATIVE,
        "the zero matrix": np.zeros((3, 3)),
        "the identity": np.eye(3),
    }
    for label, H in matrices.items():
        n = len(H)
        p = np.linspace(0.5, 3.0, n)
        root = np.sqrt(np.outer(p, p))
        shapes = {"x": (n,)}
        yield Case(label, H, L2(), float(np.linalg.eigvalsh(H)[-1]), shapes)
        top = float(np.linalg.eigvalsh(H / root)[-1])
        yield Case(label, H, Preconditioned({"x": p}), top, shapes)
        cube = cube_maximum(H)
        yield Case(label, H, Linf(), cube, shapes)
        yield Case(label, H, Scaled(Linf(), 2.0), cube / 4.0, shapes)
        yield Case(label, H, L1(), cross_polytope_maximum(H), shapes)


def _rank_one(rng: np.random.Generator) -> Iterator[Case]:
    """H = v vᵀ over a matrix and a vector: S = ‖v‖*²."""
    v = rng.standard_normal(6)
    W, b = v[:4].reshape(2, 2), v[4:]
    singular = np.linalg.svd(W, compute_uv=False)
    euclid = np.linalg.norm(W), np.linalg.norm(b)
    duals: list[tuple[Norm, float]] = [
        (L2(), float(np.linalg.norm(v))),
        (Linf(), float(np.abs(v).sum())),
        (L1(), float(np.abs(v).max())),
        (Spectral(), float(singular.sum() + euclid[1])),
        (Nuclear(), float(max(singular.max(), euclid[1]))),
        (SumOver(L2()), float(max(euclid))),
        (MaxOver(L2()), float(sum(euclid))),
        (L2Over(Linf()), float(np.hypot(np.abs(W).sum(), np.abs(b).sum()))),
        (MaxOver(L1(), radii=2.0), 2.0 * float(np.abs(W).max() + np.abs(b).max())),
        (SumOver(Linf()), float(max(np.abs(W).sum(), np.abs(b).sum()))),
    ]
    for norm, dual in duals:
        yield Case("v vᵀ", np.outer(v, v), norm, dual**2, SHAPES)


def cube_maximum(H: Vector) -> float:
    """max of ⟨d, Hd⟩ over max |d_i| = 1: on each face, the stationary point of the free entries."""
    best = -np.inf
    for signs in itertools.product((-1.0, 0.0, 1.0), repeat=len(H)):
        d = np.array(signs)
        free = d == 0
        if free.all():
            continue
        try:
            d[free] = np.linalg.solve(H[np.ix_(free, free)], -H[np.ix_(free, ~free)] @ d[~free])
        except np.linalg.LinAlgError:  # constant along a line: a smaller face has the value too
            continue
        if np.all(np.abs(d) <= 1.0):
            best = max(best, float(d @ H @ d))
    return best


def cross_polytope_maximum(H: Vector) -> float:
    """max of ⟨d, Hd⟩ over Σ|d_i| = 1: per support and signs, the stationary point of a simplex."""
    best = -np.inf
    for signs in itertools.product((-1.0, 0.0, 1.0), repeat=len(H)):
        s = np.array(signs)
        on = s != 0
        k = int(on.sum())
        if not k:
            continue
        # Stationary where A y = μ·1 and Σy = 1.
        A = np.outer(s, s)[np.ix_(on, on)] * H[np.ix_(on, on)]
        system = np.block([[A, -np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]])
        try:
            y = np.linalg.solve(system, np.eye(k + 1)[-1])[:k]
        except np.linalg.LinAlgError:
            continue
        if np.all(y >= 0.0):
            best = max(best, float(y @ A @ y))
    return best


def _symmetric(rng: np.random.Generator, n: int, definite: bool = False) -> Vector:
    M = rng.standard_normal((n, n))
    return M @ M.T if definite else (M + M.T) / 2
