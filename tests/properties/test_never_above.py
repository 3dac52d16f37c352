"""No estimator ever claims more than the maximum: cold, warm, at any budget, in both precisions.

ℓ∞ and ℓ1: the maximum over all faces, counted out. For norms of two planes, max(|u|, |v|) and
|u| + |v| of u, v in R² (2 × 2 spectral and nuclear norms among them), the sphere is scanned:
exactly along the lengths, and over both angles in steps, between which the curvature bounds the
rest.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import geodiag
from geodiag import estimators, norms
from tests import truth
from tests.properties.test_certificate import problem
from tests.quadratic import Quadratic

ESTIMATORS = [
    estimators.Ascent(),
    estimators.Ascent(starts=2),
    estimators.FrankWolfe(iterations=5, restarts=2),
    estimators.Enumerate(),
]


def cube_maxima(Hs):
    """max of ⟨d, Hd⟩ over max|d_i| = 1, for many H at once: every face, as truth.cube_faces."""
    n = Hs.shape[-1]
    best = np.full(len(Hs), -np.inf)
    for pattern in itertools.product((1, 0, -1), repeat=n):
        d = np.broadcast_to(np.array(pattern, dtype=float), (len(Hs), n)).copy()
        free, fixed = np.flatnonzero(d[0] == 0), np.flatnonzero(d[0])
        if not fixed.size or d[0, fixed[0]] < 0:  # one of each pair ±d
            continue
        ok = np.full(len(Hs), True)
        if free.size:
            sub = Hs[:, free][:, :, free]
            # A form that is flat on a face attains its maximum on a smaller one too.
            ok = np.abs(np.linalg.det(sub / _size(sub)[:, None, None])) > 1e-12
            sub = np.where(ok[:, None, None], sub, np.eye(free.size))
            d[:, free] = -np.linalg.solve(sub, Hs[:, free][:, :, fixed] @ d[0, fixed, None])[..., 0]
        ok &= np.max(np.abs(d), axis=1) <= 1.0
        best = np.where(ok, np.maximum(best, np.einsum("ki,kij,kj->k", d, Hs, d)), best)
    return best


def _size(Hs):
    return np.maximum(np.abs(Hs).max(axis=(1, 2)), 1e-300)


def rounding(H, n):
    """Of ⟨d, Hd⟩, ‖d‖₂² ≤ n: n·ε of n² terms of max|H| at most, with a constant of 8."""
    return 8 * n**3 * float(np.finfo(H.dtype).eps) * float(np.abs(H).max())


def measured(rng, matrices, shapes, norm, estimator):
    """(matrix, result) of a run over ``matrices``: cold, then warm from the result, or from blocks,
    at random ages and budgets."""
    start, out = None, []
    for H in matrices:
        budget = None if rng.random() < 0.2 else int(rng.integers(2, 25))
        oracle = Quadratic(H, shapes, rng.standard_normal(len(H)))
        result = geodiag.sharpness(
            oracle,
            norm,
            start=start,
            estimator=estimator,
            max_hvps=budget,
            seed=int(rng.integers(1000)),
            rtol=[None, 1e-2, 1e-6][rng.integers(3)],
        )
        assert result.num_hvps == oracle.asked <= (budget or 1000)
        out.append(result)
        start = result.direction
        if rng.random() < 0.7:
            start = result.state | {"age": int(rng.integers(20))}
    return out


def check_cube(count, seed):
    rng = np.random.default_rng(seed)
    for n in range(1, 6):
        Hs = [problem(rng, n).astype(("float64", "float32")[k % 2]) for k in range(count // 5)]
        tops = cube_maxima(np.array([H.astype(float) for H in Hs]))
        for at in range(0, len(Hs) - 5, 6):
            estimator = ESTIMATORS[rng.integers(len(ESTIMATORS))]
            for parity in (0, 1):
                run = Hs[at + parity : at + 6 : 2]
                results = measured(rng, run, None, "linf", estimator)
                for k, result in enumerate(results):
                    H, top = run[k], tops[at + parity + 2 * k]
                    assert result.value <= top + rounding(H, n), (estimator, H.tolist())
                    if result.bound is geodiag.Bound.EXACT:
                        assert result.value >= top - rounding(H, n), (estimator, H.tolist())


def test_the_maxima_are_those_of_the_faces():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 4):
        Hs = np.array([problem(rng, n) for _ in range(20)])
        for H, top in zip(Hs, cube_maxima(Hs), strict=True):
            assert top == pytest.approx(truth.cube_faces(H), rel=1e-9, abs=1e-12 * np.abs(H).max())


def test_never_above_the_enumerated_maximum():
    check_cube(1500, 0)


@pytest.mark.slow
def test_never_above_the_enumerated_maximum_in_ten_thousand():
    check_cube(10_000, 1)


def test_never_above_the_cross_polytope():
    rng = np.random.default_rng(2)
    for _ in range(40):
        Hs = [problem(rng, 4) for _ in range(3)]
        estimator = ESTIMATORS[rng.integers(len(ESTIMATORS))]
        for H, result in zip(Hs, measured(rng, Hs, None, "l1", estimator), strict=True):
            assert result.value <= truth.cross_faces(H) + rounding(H, 4)


def test_never_above_the_top_eigenvalue(dtype):
    rng = np.random.default_rng(3)
    for _ in range(100):
        n = int(rng.integers(1, 40))
        Hs = [problem(rng, n).astype(dtype) for _ in range(3)]
        for H, result in zip(Hs, measured(rng, Hs, None, "l2", "auto"), strict=True):
            top = np.linalg.eigvalsh(H.astype(float))[-1]
            size = np.abs(np.linalg.eigvalsh(H.astype(float))).max()
            slack = truth.tolerance(dtype, n) * size
            assert result.value <= top + slack
            if result.bound is geodiag.Bound.EXACT:
                assert result.value >= top - (result.residual or 0.0) * abs(result.value) - slack


def two_planes(H, kind, steps=360):
    """(scan, its error): the maximum over |u| + |v| = 1 or max(|u|, |v|) = 1.

    At fixed angles the form is a quadratic in the lengths (p, q), whose maximum on their square is
    at a corner or where its slope vanishes on an edge. Halfway between two steps h of both angles
    it is off by ½·(h²/2)·8‖H‖ at most: |d| ≤ √2, and two derivatives of ⟨d, Hd⟩ in the angles are
    4‖H‖|d|² at most.
    """
    h = np.pi / steps
    angle = h * np.arange(2 * steps)
    e = np.stack([np.cos(angle), np.sin(angle)])
    A = np.einsum("ik,ij,jk->k", e, H[:2, :2], e)[:steps, None]  # ±d are one
    B = np.einsum("ik,ij,jk->k", e, H[2:, 2:], e)[None, :]
    C = e[:, :steps].T @ H[:2, 2:] @ e

    def along(a, b, c):
        """max of a + 2bt + ct² over 0 ≤ t ≤ 1."""
        inside = np.clip(np.where(c < 0, -b / np.where(c < 0, c, -1.0), 0.0), 0.0, 1.0)
        return np.max(np.stack([a + 0 * b, a + 2 * b + c, a + 2 * b * inside + c * inside**2]))

    # Lengths (1 − t, t); or (1, t) and (t, 1).
    sides = [(A, C - A, A - 2 * C + B)] if kind == "sum" else [(A, C, B), (B, C, A)]
    best = max(along(*side) for side in sides)
    return best, 2 * h * h * np.abs(np.linalg.eigvalsh(H)).max()


# (a, b; c, d) of the rotation part u and the reflection part v: singular values ||u| ± |v||.
PARTS = np.array([[1.0, 0, 1, 0], [0, -1, 0, 1], [0, 1, 0, 1], [1, 0, -1, 0]])
PAIR = {"a": (2,), "b": (2,)}
PLANES = {
    "spectral": (norms.Spectral(), {"W": (2, 2)}, "sum", PARTS),
    "nuclear": (norms.Nuclear(), {"W": (2, 2)}, "max", PARTS / 2),  # |W| = 2 max(|u|, |v|)
    "block": (norms.SumOver(norms.L2()), PAIR, "sum", np.eye(4)),
    "radii": (norms.SumOver(norms.L2(), {"a": 3.0}), PAIR, "sum", np.diag([3.0, 3, 1, 1])),
    "frobenius": (norms.Frobenius(), PAIR, "max", np.eye(4)),
}


@pytest.mark.parametrize("label", PLANES)
def test_never_above_a_dense_scan(label):
    norm, shapes, kind, parts = PLANES[label]
    rng = np.random.default_rng(4)
    near = []
    for trial in range(25):
        Hs = [problem(rng, 4) for _ in range(3)]
        named = ["auto", *ESTIMATORS[:3]][trial % 4]
        for H, result in zip(Hs, measured(rng, Hs, shapes, norm, named), strict=True):
            top, off = two_planes(parts.T @ H @ parts, kind)
            assert result.value <= top + off + rounding(H, 4), (label, H.tolist())
            near.append(result.value >= top - off - 1e-3 * abs(top))
    assert np.mean(near) > 0.3  # a scan of another norm would be far off
