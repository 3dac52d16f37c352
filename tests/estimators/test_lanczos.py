"""Lanczos against dense eigenvalues (NumPy, SciPy) and ``eigsh``, for spectra that are hard for it.

An eigenvalue from a Ritz pair of relative residual ρ is off by at most ρ·|θ|, and by ρ²·θ²/gap
where it is separated; EXACT promises ρ ≤ rtol, 1e-8 for given matrices in float64.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg

import geodiag
from geodiag import Bound, Status, norms
from geodiag.errors import NormError
from geodiag.estimators import Lanczos
from geodiag.oracles import MatrixProblem
from tests import truth

SPECTRA = {
    "spread": np.linspace(-3.0, 5.0, 40),
    "clustered at the top": np.r_[np.linspace(0.0, 1.0, 30), 5.0 - 1e-3 * np.arange(10)],
    "degenerate top": np.r_[np.linspace(-1.0, 1.0, 30), np.full(10, 2.0)],
    "two values": np.r_[np.full(39, 1.0), 4.0],
    "negative definite": -np.linspace(0.5, 4.0, 40),
    "dominated by a negative outlier": np.r_[-1000.0, np.linspace(-1.0, 1.0, 39)],
    "one positive among negative": np.r_[np.linspace(-5.0, -1.0, 39), 1e-3],
    "identity": np.ones(40),
    "minus identity": -np.ones(40),
    "rank one": np.r_[np.zeros(39), 3.0],
    "geometric": 2.0 ** -np.arange(40.0),
}


@pytest.mark.parametrize("label", SPECTRA)
@pytest.mark.parametrize("basis", [64, 8], ids=["basis 64", "restarted at 8"])
def test_top_eigenvalue(label, basis):
    spectrum = SPECTRA[label]
    H = truth.symmetric(40, 3, spectrum)
    result = geodiag.sharpness(H, "l2", estimator=Lanczos(basis))
    size = np.abs(spectrum).max()
    # Residual 1e-8 relative to the value, and rounding of 40·ε relative to ‖H‖.
    slack = 1e-8 * abs(spectrum.max()) + 40 * 40 * np.finfo(float).eps * size
    assert result.value == pytest.approx(np.linalg.eigvalsh(H)[-1], abs=slack)
    assert result.bound is Bound.EXACT
    assert result.status is Status.CONVERGED
    d = result.direction["x"]
    assert np.linalg.norm(H @ d - result.value * d) <= slack * 10


@pytest.mark.parametrize(
    "spectrum",
    [-np.arange(100.0), np.r_[-np.arange(1.0, 100.0), 1e-14], np.zeros(100)],
    ids=["semidefinite", "rounding at the top", "zero"],
)
def test_a_top_eigenvalue_of_zero_ends(spectrum):
    """No relative residual can be met at a value of zero: rounding of ‖H‖ decides instead."""
    H = truth.symmetric(100, 4, spectrum)
    result = geodiag.sharpness(H, "l2", max_hvps=2000)
    assert result.value == pytest.approx(0.0, abs=100 * 100 * np.finfo(float).eps * 99)
    assert result.num_hvps < 2000


def test_against_eigsh():
    """A sparse operator of 300 unknowns: the path graph's Laplacian minus a potential."""
    rng = np.random.default_rng(5)
    H = scipy.sparse.diags_array(
        [2 + rng.uniform(-1, 1, 300), -np.ones(299), -np.ones(299)], offsets=[0, 1, -1]
    )
    expected = scipy.sparse.linalg.eigsh(H, k=1, which="LA", tol=1e-12)[0][0]
    operator = scipy.sparse.linalg.aslinearoperator(H)
    result = geodiag.sharpness(operator, "l2", rtol=1e-8, max_hvps=1000)
    assert result.value == pytest.approx(expected, rel=1e-8)
    assert result.bound is Bound.EXACT


@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_preconditioned_against_scipy(spread, dtype):
    """The generalised eigenvalue of (H, P), with condition numbers up to 1e3."""
    n = 30
    H = truth.symmetric(n, 6).astype(dtype)
    p = np.geomspace(1.0, spread, n) if spread > 1 else np.ones(n)
    P = truth.symmetric(n, 7, p).astype(dtype)
    wide = H.astype(np.float64), P.astype(np.float64)
    expected = scipy.linalg.eigh(*wide, eigvals_only=True)[-1]
    result = geodiag.sharpness(H, norms.Preconditioned(P), rtol=1e-4)
    assert result.bound is Bound.EXACT
    # |λ − θ| ≤ ρ|θ|, and forming P⁻¹ in this precision loses κ(P)·n·ε.
    slack = 1e-4 + spread * n * float(np.finfo(dtype).eps)
    assert result.value == pytest.approx(expected, rel=slack)


def test_all_frameworks(xp, dtype):
    H = truth.symmetric(12, 8).astype(dtype)
    result = geodiag.sharpness(xp.asarray(H, dtype=getattr(xp, dtype)), "l2", rtol=1e-5)
    # Second order in the residual: (1e-5)²·‖H‖/gap is far below rounding of float32.
    tol = 1e-9 if dtype == "float64" else truth.tolerance(dtype, 12)
    assert result.value == pytest.approx(np.linalg.eigvalsh(H.astype(np.float64))[-1], rel=tol)
    assert result.bound is Bound.EXACT


@pytest.mark.parametrize("which", [0, 5, -2], ids=["bottom", "middle", "second"])
def test_a_start_at_another_eigenvector_still_finds_the_top(which):
    H = truth.symmetric(12, 9, np.linspace(-1.0, 2.0, 12))
    values, vectors = np.linalg.eigh(H)
    start = {"x": 100.0 * vectors[:, which]}
    result = geodiag.sharpness(H, "l2", start=start)
    assert result.value == pytest.approx(values[-1], rel=1e-8)


def test_a_start_at_the_top_saves_products():
    H = truth.symmetric(60, 10, np.r_[np.linspace(-1.0, 1.0, 59), 1.1])
    cold = geodiag.sharpness(H, "l2", rtol=1e-4)
    warm = geodiag.sharpness(H, "l2", rtol=1e-4, start=cold)
    again = geodiag.sharpness(H, "l2", rtol=1e-4, start=cold.state)
    assert warm.num_hvps < cold.num_hvps
    assert warm.value == again.value == pytest.approx(1.1, rel=1e-4)


def test_a_tolerance_finer_than_float32():
    H = truth.symmetric(30, 11, np.linspace(0.0, 1.0, 30)).astype(np.float32)
    result = geodiag.sharpness(H, "l2", rtol=1e-12)
    assert result.status is Status.PRECISION
    assert result.bound is Bound.LOWER
    assert "float64" in result.status.explanation
    assert result.value == pytest.approx(1.0, rel=truth.tolerance("float32", 30))


def test_a_budget_that_ends_early():
    H = truth.symmetric(200, 12, np.linspace(-1.0, 1.0, 200))
    result = geodiag.sharpness(H, "l2", max_hvps=10)
    assert result.status is Status.BUDGET
    assert result.bound is Bound.LOWER
    assert result.num_hvps == 10
    assert 0.0 < result.value < 1.0
    assert "max_hvps" in result.status.explanation


def test_ritz_values_rise_and_end_at_the_value():
    H = truth.symmetric(50, 13, np.linspace(-2.0, 3.0, 50))
    result = geodiag.sharpness(H, "l2", estimator=Lanczos(8))
    history = np.array(result.history)
    # Cauchy interlacing, through restarts too, up to rounding of ‖H‖.
    assert np.diff(history).min() >= -50 * 3 * np.finfo(float).eps
    assert history[-1] == pytest.approx(result.value, rel=1e-12)
    assert len(history) == result.num_hvps - 1


def test_the_residual_is_the_true_one():
    H = truth.symmetric(30, 14)
    p = np.linspace(0.5, 4.0, 30)
    result = geodiag.sharpness(H, norms.Preconditioned({"x": p}), rtol=1e-2)
    d = result.direction["x"]
    off = (H @ d) / p - result.value * d
    expected = np.sqrt(off @ (p * off)) / abs(result.value)
    assert result.residual == pytest.approx(expected, rel=1e-10)
    assert 1e-8 < result.residual <= 1e-2


def test_only_quadratic_norms():
    oracle = MatrixProblem(np.eye(3)).at()
    with pytest.raises(NormError, match=r"Lanczos needs a quadratic norm, and Linf\(\) is not one"):
        Lanczos().estimate(oracle, norms.Linf())


def test_one_parameter():
    for h in (3.0, -3.0, 0.0):
        result = geodiag.sharpness(np.array([[h]]), "l2")
        assert result.value == pytest.approx(h, abs=1e-15)
        assert result.bound is Bound.EXACT


def test_a_refresh_short_of_the_whole_space_is_never_exact():
    """A start within one of two decoupled blocks says nothing of the other's eigenvalues."""
    rng, n = np.random.default_rng(1), 100
    A, B = (x + x.T for x in rng.standard_normal((2, n, n)))
    H = np.block([[A, np.zeros((n, n))], [np.zeros((n, n)), 2 * B]])
    start = np.zeros(2 * n)
    start[:n] = np.linalg.eigh(A)[1][:, -1] + 0.3 * rng.standard_normal(n)
    state = {"witness": {"x": start}, "age": 0, "norm": "L2()"}
    refreshed = geodiag.sharpness(H, start=state, rtol=1e-3)
    assert refreshed.num_hvps > 9
    assert refreshed.value < 0.9 * np.linalg.eigvalsh(H)[-1]
    assert refreshed.bound is geodiag.Bound.LOWER
