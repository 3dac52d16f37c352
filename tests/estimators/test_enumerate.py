"""Enumerate against a brute force of its own over faces, and against sampling of the sphere.

The brute force sums up KKT points per face pattern in plain NumPy; sampling can only stay below,
and comes close in two dimensions, where it is dense.
"""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from geodiag import estimators, norms
from geodiag.errors import NormError
from geodiag.oracles import MatrixProblem
from tests import truth

# ⟨d, Hd⟩ of n ≤ 6 entries of order 1, and a linear solve with condition number up to 1e3.
TOL = 1e-11

MATRICES = {
    "indefinite 2": truth.symmetric(2, 0),
    "indefinite 3": truth.symmetric(3, 1),
    "indefinite 4": truth.symmetric(4, 2),
    "indefinite 5": truth.symmetric(5, 3),
    "positive": truth.symmetric(4, 4, [0.1, 1.0, 2.0, 5.0]),
    "one negative": truth.symmetric(4, 5, [-6.0, 1.0, 2.0, 3.0]),
    "one positive": truth.symmetric(4, 6, [-3.0, -2.0, -1.0, 0.5]),
    "negative": truth.symmetric(4, 7, [-3.0, -2.0, -1.0, -0.5]),
    "singular": truth.symmetric(4, 8, [-2.0, 0.0, 0.0, 3.0]),
    "diagonal": np.diag([1.0, -5.0, 2.0]),
    "zero": np.zeros((3, 3)),
}


def rows_linf(D):
    return np.abs(D).max(axis=1)


def rows_l1(D):
    return np.abs(D).sum(axis=1)


@pytest.mark.parametrize("label", MATRICES)
@pytest.mark.parametrize(
    ("name", "brute", "rows"),
    [("linf", truth.cube_faces, rows_linf), ("l1", truth.cross_faces, rows_l1)],
    ids=["linf", "l1"],
)
def test_exact(name, brute, rows, label):
    H = MATRICES[label]
    result = geodiag.sharpness(H, name)
    assert result.estimator == "Enumerate()"
    assert result.bound is geodiag.Bound.EXACT
    assert result.status is geodiag.Status.ENUMERATED
    assert result.value == pytest.approx(brute(H), abs=TOL * max(1.0, np.abs(H).max()))
    assert truth.sampled(H, rows) <= result.value + TOL
    assert result.num_hvps == len(H) + 1


@pytest.mark.parametrize(("name", "rows"), [("linf", rows_linf), ("l1", rows_l1)])
def test_two_dimensions_by_a_dense_circle(name, rows):
    """The sphere of a plane norm is a curve: 40,000 angles leave (π/4e4)²·‖H‖ ≈ 1e-7."""
    angles = np.linspace(0, np.pi, 40_001)
    D = np.column_stack([np.cos(angles), np.sin(angles)])
    for seed in range(20):
        H = truth.symmetric(2, seed)
        best = np.max(np.einsum("ki,ij,kj->k", D, H, D) / rows(D) ** 2)
        # Kinks make the error of first order in the spacing where the maximum is at a corner.
        slack = 8 * np.abs(H).max() * np.pi / 40_000
        assert best <= geodiag.sharpness(H, name).value + 1e-12
        assert geodiag.sharpness(H, name).value == pytest.approx(best, abs=slack)


SHAPES = {"a": (2,), "B": (1, 2)}
L1, Linf = norms.L1, norms.Linf


def top(x):
    return np.abs(x).max(axis=-1)


def one(x):
    return np.abs(x).sum(axis=-1)


# label: (norm, its value on rows of coordinates (a₁, a₂, B₁, B₂)).
COMPOSED = {
    "max of l1": (norms.MaxOver(L1()), lambda D: np.maximum(one(D[:, :2]), one(D[:, 2:]))),
    "sum of linf": (norms.SumOver(Linf()), lambda D: top(D[:, :2]) + top(D[:, 2:])),
    "sum of l1 with radii": (
        norms.SumOver(L1(), radii={"a": 2.0, "B": 0.5}),
        lambda D: one(D[:, :2]) / 2 + one(D[:, 2:]) * 2,
    ),
    "max of linf with radii": (
        norms.MaxOver(Linf(), radii={"a": 2.0}),
        lambda D: np.maximum(top(D[:, :2]) / 2, top(D[:, 2:])),
    ),
    "linf and l1 by max": (
        norms.ByParameter({"a": Linf(), "B": L1()}, radii={"B": 3.0}),
        lambda D: np.maximum(top(D[:, :2]), one(D[:, 2:]) / 3),
    ),
    "linf and l1 by sum": (
        norms.ByParameter({"a": Linf(), "B": L1()}, over=norms.SumOver),
        lambda D: top(D[:, :2]) + one(D[:, 2:]),
    ),
    "scaled sum inside a max": (
        norms.Scaled(norms.ByParameter({"a|B": norms.SumOver(Linf())}), 0.5),
        lambda D: (top(D[:, :2]) + top(D[:, 2:])) / 2,
    ),
}


@pytest.mark.parametrize("label", COMPOSED)
@pytest.mark.parametrize("seed", range(4))
def test_composed_polyhedra(label, seed):
    """Bracketed: never below a local solver with restarts, attained by its own witness."""
    norm, rows = COMPOSED[label]
    spectrum = [None, [0.2, 1.0, 2.0, 3.0], [-4.0, -1.0, 0.3, 1.0], [-3.0, -2.0, -1.0, -0.5]][seed]
    H = truth.symmetric(4, 30 + seed, spectrum)
    result = geodiag.sharpness(H, norm, shapes=SHAPES)
    assert result.bound is geodiag.Bound.EXACT
    d = truth.flat(result.direction)
    assert float(rows(d[None])[0]) == pytest.approx(1.0, rel=1e-13)
    assert result.value == pytest.approx(d @ H @ d, abs=1e-13 * np.abs(H).max() * (d @ d))
    best = truth.local_maxima(H, lambda x: float(rows(x[None])[0]), restarts=6)
    # The solver's own tolerance, 1e-10 in d at a kink, times ‖H‖ ≈ 4; its best may miss the top.
    assert best <= result.value + 1e-8
    assert result.value - best <= 0.02 * np.abs(H).max()


def test_ten_parameters_and_no_more():
    assert isinstance(_chosen(10), estimators.Enumerate)
    assert isinstance(_chosen(11), estimators.Ascent)
    with pytest.raises(NormError, match=r"at most 10 parameters. Got: Linf\(\) over 11 parameters"):
        geodiag.sharpness(np.eye(11), "linf", estimator="enumerate")
    with pytest.raises(NormError, match="Enumerate takes polyhedral norms"):
        geodiag.sharpness(np.eye(3), "l2", estimator="enumerate")


def _chosen(n):
    space = MatrixProblem(np.eye(n)).at().space
    return estimators.choose(norms.Linf(), space)


def test_a_small_budget_goes_to_ascent_and_is_said():
    H = truth.symmetric(5, 3)
    result = geodiag.sharpness(H, "linf", max_hvps=5)
    assert result.bound is geodiag.Bound.LOWER
    assert result.num_hvps <= 5
    assert result.estimator == "Ascent()"
    assert "Enumerate takes 6 products" in result.notes[-1]
    assert result.value <= truth.cube_faces(H) + TOL
    assert geodiag.sharpness(H, "linf", max_hvps=6).bound is geodiag.Bound.EXACT


def test_float32_matrix(xp):
    """Enumerated in float64 on the host; the answer is certified in float32."""
    H = truth.symmetric(4, 2).astype(np.float32)
    result = geodiag.sharpness(xp.asarray(H, dtype=xp.float32), "linf")
    assert result.direction["x"].dtype == xp.float32
    slack = float(64 * 4 * np.finfo(np.float32).eps * np.abs(H).max() * 4)  # ‖d‖₂² ≤ 4
    assert result.value == pytest.approx(truth.cube_faces(H.astype(np.float64)), abs=slack)
