"""Certificates against truth: no upper bound is ever below the maximum, or below a value attained.

The truth is a search over all faces for ℓ∞ and ℓ1 (tests.truth), an eigenvalue for ℓ2, and for the
other norms the best of many sampled directions, which no bound may fall below either.
"""

from __future__ import annotations

import numpy as np
import pytest

from geodiag.certificates.certificate import certify
from geodiag.norms import L1, L2, L2Over, Linf, Muon, Nuclear, Scaled, Spectral, SumOver
from geodiag.oracles.dense import MatrixProblem
from geodiag.oracles.wrappers import CountingOracle
from tests.truth import cross_faces, cube_faces

KINDS = ("indefinite", "negative", "positive", "singular", "scaled", "zero", "rank one", "integer")


def problem(rng: np.random.Generator, n: int) -> np.ndarray:
    """A symmetric matrix of a random kind; rarely zero, at any scale."""
    M = rng.standard_normal((n, n))
    kind = KINDS[rng.integers(len(KINDS))]
    if kind == "positive":
        H = M @ M.T
    elif kind == "negative":
        H = -M @ M.T - 0.01 * np.eye(n)
    elif kind == "singular":
        H = M[:, : n // 2] @ M[:, : n // 2].T - np.outer(M[0], M[0])
    elif kind == "scaled":
        s = 10.0 ** rng.uniform(-3, 3, n)
        H = s[:, None] * (M + M.T) * s
    elif kind == "zero":
        H = np.zeros((n, n))
    elif kind == "rank one":
        H = np.outer(M[0], M[0]) * rng.choice([-1.0, 1.0])
    elif kind == "integer":  # degenerate faces, equal eigenvalues
        H = np.triu(rng.integers(-2, 3, (n, n)).astype(float))
        H = H + np.triu(H, 1).T
    else:
        H = (M + M.T) / 2
    return H * 10.0 ** rng.integers(-8, 9)


def upper(H, norm, shapes=None, seed=0, budget=60):
    oracle = CountingOracle(MatrixProblem(H, shapes).at())
    bound = norm.bind(oracle.space)
    witness = bound.lmo(oracle.space.random(np.random.default_rng(seed + 1)))
    found = certify(oracle, bound, witness, max_hvps=budget, seed=seed)
    assert oracle.num_hvps == found.num_hvps <= budget
    return found.upper, bound


def not_below(top: float, truth: float, H: np.ndarray) -> None:
    # The enumeration and ⟨d, Hd⟩ round at n²·ε·max|H|, here 25·2e-16 and its constant.
    assert top >= truth - 1e-13 * np.abs(H).max()


def check_faces(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for trial in range(count):
        n = int(rng.integers(1, 6))
        H = problem(rng, n)
        not_below(upper(H, Linf(), seed=trial)[0], cube_faces(H), H)
        if trial % 4 == 0:
            not_below(upper(H, L1(), seed=trial)[0], cross_faces(H), H)
            not_below(upper(H, L2(), seed=trial)[0], float(np.linalg.eigvalsh(H)[-1]), H)


@pytest.mark.filterwarnings("error")
def test_never_below_the_enumerated_maximum():
    check_faces(150, 0)


@pytest.mark.slow
def test_never_below_the_enumerated_maximum_in_ten_thousand():
    check_faces(10_000, 1)


NORMS = [
    (Spectral(), {"W": (2, 2), "b": (1,)}),
    (Spectral(), {"W": (1, 2), "V": (2, 2)}),
    (Muon(), {"W": (3, 2)}),
    (SumOver(L2()), {"a": (2,), "b": (3,)}),
    (SumOver(L2(), radii={"a": 0.3}), {"a": (2,), "b": (3,)}),
    (L2Over(Linf(), radii={"a": 3.0}), {"a": (2,), "b": (3,)}),
    (Nuclear(), {"W": (2, 2), "b": (1,)}),
    (SumOver(Spectral()), {"W": (2, 2), "b": (2,)}),
    (Scaled(Linf(), 0.2), {"a": (4,)}),
]


@pytest.mark.parametrize(("norm", "shapes"), NORMS, ids=lambda x: repr(x))
def test_never_below_an_attained_value(norm, shapes):
    rng = np.random.default_rng(2)
    n = sum(int(np.prod(s)) for s in shapes.values())
    for trial in range(15):
        H = problem(rng, n)
        top, bound = upper(H, norm, shapes, seed=trial)
        oracle = MatrixProblem(H, shapes).at()
        best = -np.inf
        for _ in range(10):  # ascent by the LMO, which attains the maximum of convex problems
            d = oracle.space.random(rng)
            for _ in range(8):
                length = float(bound.value(d))
                best = max(
                    best, sum(float(np.sum(x * oracle.hvp(d)[k])) for k, x in d.items()) / length**2
                )
                d = bound.lmo(oracle.hvp(d))
                if float(bound.value(d)) == 0:
                    break
        not_below(top, best, H)
