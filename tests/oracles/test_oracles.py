"""Matrices, LinearOperators and pairs of callables as problems, against their dense Hessians.

The pair's loss is Σ cosh(Aw) + w₁w₂w₃, whose Hessian Aᵀ diag(cosh(Aw)) A + T is written by hand;
central differences give it to a few ε^{2/3} ≈ 4e-11.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg

import geodiag
from geodiag import Bound
from geodiag.oracles import CountingOracle, MatrixProblem, finite_difference_hvp
from tests import truth

A = np.random.default_rng(0).standard_normal((4, 3))
W = np.array([0.3, -0.5, 0.2])


def loss(w):
    x = w["x"]
    return np.sum(np.cosh(A @ x)) + np.prod(x)


def gradient(w):
    x = w["x"]
    return {"x": A.T @ np.sinh(A @ x) + np.array([x[1] * x[2], x[0] * x[2], x[0] * x[1]])}


def hessian(x):
    T = np.array([[0, x[2], x[1]], [x[2], 0, x[0]], [x[1], x[0], 0]])
    return A.T @ np.diag(np.cosh(A @ x)) @ A + T


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l2", lambda H: np.linalg.eigvalsh(H)[-1]),
        ("linf", truth.cube_faces),
        ("l1", truth.cross_faces),
    ],
)
def test_a_pair_of_callables(name, expected):
    result = geodiag.sharpness((loss, gradient), name, params={"x": W}, rtol=1e-6)
    assert result.value == pytest.approx(expected(hessian(W)), rel=1e-8)
    assert "central differences" in result.notes[0]


def test_where_holds_the_rest_fixed():
    """L = x²·y: with y = 3 fixed the Hessian in x is 6."""
    pair = (
        lambda w: np.sum(w["x"] ** 2 * w["y"]),
        lambda w: {"x": 2 * w["x"] * w["y"], "y": w["x"] ** 2},
    )
    params = {"x": np.array([2.0]), "y": np.array([3.0])}
    assert geodiag.sharpness(pair, params=params, where="x").value == pytest.approx(6.0, rel=1e-8)
    both = np.array([[6.0, 4.0], [4.0, 0.0]])
    expected = np.linalg.eigvalsh(both)[-1]
    assert geodiag.sharpness(pair, params=params).value == pytest.approx(expected, rel=1e-8)


def test_a_problem_measures_at_other_points():
    problem = geodiag.problem((loss, gradient), params={"x": W})
    for x in (W, W + 0.5):
        got = geodiag.sharpness(problem.at({"x": x}), rtol=1e-6).value
        assert got == pytest.approx(np.linalg.eigvalsh(hessian(x))[-1], rel=1e-8)
    # The point is frozen: a change of the user's array afterwards is not seen.
    mine = {"x": W.copy()}
    oracle = problem.at(mine)
    mine["x"][:] = 100.0
    assert float(oracle.loss()) == pytest.approx(loss({"x": W}), rel=1e-15)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_finite_differences_are_as_exact_as_said(dtype):
    """About ε^{2/3} relative: 4e-11 and 2e-5.

    With h = ε^{1/3}(1 + ‖w‖)/‖d‖, truncation is h²/6 of the third derivative of the gradient along
    d, here of the size of Hd, and rounding ε/h: each about one ε^{2/3}; 5 for both with a margin.
    """
    d = {"x": np.array([1.0, 2.0, -1.0], dtype=dtype)}
    x = W.astype(dtype)

    def narrow(w):
        return {"x": gradient(w)["x"].astype(dtype)}

    got = finite_difference_hvp(narrow, {"x": x}, d)["x"]
    assert got.dtype == dtype
    exact = hessian(x.astype(np.float64)) @ d["x"].astype(np.float64)
    tol = 5 * float(np.finfo(dtype).eps) ** (2 / 3)
    np.testing.assert_allclose(got, exact, rtol=0, atol=tol * np.abs(exact).max())
    zero = finite_difference_hvp(narrow, {"x": x}, {"x": 0 * x})["x"]
    assert np.array_equal(zero, 0 * x)


def test_linear_operator():
    """A matrix-free Hessian of 200 unknowns: diagonal plus rank one."""
    rng = np.random.default_rng(1)
    h, v = rng.uniform(0, 1, 200), rng.standard_normal(200) / 10
    H = np.diag(h) + np.outer(v, v)
    op = scipy.sparse.linalg.LinearOperator(
        (200, 200), lambda x: h * x.ravel() + v * (v @ x.ravel())
    )
    result = geodiag.sharpness(op, rtol=1e-6)
    assert result.value == pytest.approx(np.linalg.eigvalsh(H)[-1], rel=1e-9)
    assert result.bound is Bound.EXACT


def test_matrix_as_blocks(xp, dtype):
    """Row-major, in dict order; loss ½⟨w, Hw⟩ and gradient Hw at any point."""
    H = truth.symmetric(20, 2)
    problem = MatrixProblem(xp.asarray(H, dtype=getattr(xp, dtype)), truth.SHAPES)
    w = truth.blocks(3)
    oracle = problem.at(truth.to(xp, w, dtype))
    x = truth.flat(w)
    slack = truth.tolerance(dtype, 20) * float(np.abs(H).max() * (x @ x))
    assert float(oracle.loss()) == pytest.approx(x @ H @ x / 2, abs=slack)
    for got in (oracle.gradient(), oracle.hvp(truth.to(xp, w, dtype))):
        np.testing.assert_allclose(truth.flat(truth.back(got)), H @ x, rtol=0, atol=slack)
    assert set(oracle.matrix_view) == {"a.W", "c.W"}
    at_zero = problem.at()
    assert float(at_zero.loss()) == 0.0


@pytest.mark.parametrize("given", ["int64", "float16"])
def test_other_real_dtypes_are_measured_in_floats(given):
    H = np.diag([1, 2, 3]).astype(given)
    result = geodiag.sharpness(H, "linf")
    assert result.value == 6.0
    assert result.direction["x"].dtype == ("float64" if given == "int64" else "float32")


def test_rounding_asymmetry_is_forgiven_and_averaged():
    H = truth.symmetric(5, 4)
    H[0, 1] += 1e-14
    assert geodiag.sharpness(H).value == pytest.approx(np.linalg.eigvalsh(H)[-1], rel=1e-8)


def test_counting_counts_each_row_of_a_stack():
    oracle = CountingOracle(MatrixProblem(np.eye(3)).at())
    oracle.hvp({"x": np.ones(3)})
    oracle.hvps({"x": np.ones((5, 3))})
    assert oracle.num_hvps == 6


def test_a_closed_problem_was_a_context():
    with geodiag.problem(np.eye(2)) as problem:
        assert geodiag.sharpness(problem).value == pytest.approx(1.0, rel=1e-12)
    assert geodiag.problem(problem) is problem
