"""Matrices, LinearOperators and pairs of callables as problems, against their dense Hessians.

The pair's loss is Σ cosh(Aw) + w₁w₂w₃, whose Hessian Aᵀ diag(cosh(Aw)) A + T is written by hand;
central differences give it to a few ε^{2/3} ≈ 4e-11.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

import geodiag
from geodiag import Bound
from geodiag.errors import MatrixError
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


def in_bits(dtype, f=lambda product, x: product):
    """Products with a matrix, rounded to ``dtype``, and what ``f`` makes of them in float64."""

    def operator(H):
        A = H.astype(dtype)

        def matvec(x):
            return f((A @ x.ravel().astype(dtype)).astype(np.float64), x.ravel())

        return scipy.sparse.linalg.LinearOperator(H.shape, matvec, dtype=np.float64)

    return operator


COARSE = {
    "float32": (in_bits("float32"), 0.0, 1e-5),
    "float32, damped in float64": (in_bits("float32", lambda y, x: y + 0.3 * x), 0.3, 1e-5),
    "float16": (in_bits("float16"), 0.0, 2e-2),
    "float16, damped in float64": (in_bits("float16", lambda y, x: y + 0.3 * x), 0.3, 2e-2),
}


@pytest.mark.parametrize("n", [3, 8, 60])
@pytest.mark.parametrize("name", COARSE)
def test_products_in_fewer_bits_than_they_are_handed_over_in(name, n):
    """They are symmetric to their own precision. The error is √n·ε‖H‖ at most, here 8·1e-3·1.3."""
    operator, damping, tolerance = COARSE[name]
    for seed in range(5):
        H = truth.symmetric(n, seed)
        found = geodiag.sharpness(operator(H))
        size = np.linalg.norm(H, 2)
        assert abs(found.value - damping - np.linalg.eigvalsh(H)[-1]) < tolerance * size
        if "float16" in name:
            assert any("relative error of about 0.00" in note for note in found.notes)


@pytest.mark.parametrize("name", COARSE)
def test_an_asymmetric_operator_is_refused_in_every_precision(name):
    operator = COARSE[name][0]
    for n, seed in ((5, 0), (5, 1), (60, 0), (300, 0)):
        A = np.random.default_rng(seed).standard_normal((n, n))
        with pytest.raises(MatrixError, match="must be symmetric"):
            geodiag.sharpness(operator(A))


def test_an_operator_of_noise_is_not_taken_for_one_of_few_bits():
    rng, H = np.random.default_rng(0), truth.symmetric(40, 0)
    noisy = scipy.sparse.linalg.LinearOperator(
        (40, 40), lambda x: H @ x.ravel() * rng.uniform(0.5, 1.5, 40), dtype=np.float64
    )
    with pytest.raises(MatrixError, match="must be symmetric"):
        geodiag.sharpness(noisy)


def test_a_matrix_in_single_precision_is_declared():
    """Its products in float64 show nothing of the precision of its entries."""
    H = truth.symmetric(3, 0)
    H[0, 1] += 2e-6
    operator = scipy.sparse.linalg.aslinearoperator(H)
    with pytest.raises(MatrixError, match=r"dtype=numpy\.float32"):
        geodiag.sharpness(operator)
    declared = scipy.sparse.linalg.LinearOperator((3, 3), operator.matvec, dtype=np.float32)
    top = np.linalg.eigvalsh((H + H.T) / 2)[-1]
    assert geodiag.sharpness(declared).value == pytest.approx(top, rel=1e-5)


@pytest.mark.parametrize("kind", ["csr_matrix", "csr_array", "coo_array", "dia_matrix"])
def test_a_sparse_matrix_is_told_how_to_become_an_operator(kind):
    H = getattr(scipy.sparse, kind)(np.diag([1.0, 3.0, 2.0]))
    with pytest.raises(MatrixError, match=r"sparse matrix.*aslinearoperator"):
        geodiag.sharpness(H)
    assert geodiag.sharpness(scipy.sparse.linalg.aslinearoperator(H)).value == pytest.approx(3.0)


def test_sparse_tensors_of_other_frameworks_are_told_too():
    torch, H = pytest.importorskip("torch"), np.diag([1.0, 3.0, 2.0])
    with pytest.raises(MatrixError, match="of a sparse one pass"):
        geodiag.sharpness(torch.tensor(H).to_sparse())
    bcoo = pytest.importorskip("jax.experimental.sparse").BCOO.fromdense(H)
    with pytest.raises(MatrixError, match="sparse matrix"):
        geodiag.sharpness(bcoo)


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
