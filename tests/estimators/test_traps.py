"""Spectra and settings on which an estimator could claim too much, or too little for its cost."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator

import geodiag
from geodiag import Bound, Status, errors, norms
from geodiag.estimators import Ascent, Lanczos


def operator(diagonal):
    n = diagonal.size
    return LinearOperator((n, n), matvec=lambda x: diagonal * np.ravel(x), dtype=float)


@pytest.mark.parametrize("top", [1.05, 1.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_warm_start_on_a_lower_eigenvector_still_finds_the_top(top, seed):
    """As when two eigenvalues cross during training: the residual of the old one is tiny."""
    rng = np.random.default_rng(seed)
    diagonal = 0.01 * np.abs(rng.standard_normal(20_000))
    diagonal[:2] = 1.0, top
    start = {"x": np.eye(1, diagonal.size, 0)[0]}
    result = geodiag.sharpness(operator(diagonal), start=start, seed=seed)
    assert result.bound is Bound.EXACT
    assert result.value == pytest.approx(top, rel=1e-4)  # the residual asked for


@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1.0, 1e12, 1e19])
def test_no_square_underflows_in_float32(scale):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((80, 80))
    H = ((A + A.T) * scale).astype(np.float32)
    result = geodiag.sharpness(H, rtol=1e-4)
    # float32: 80 roundings of 6e-8 relative to the largest |eigenvalue|, near the top itself here.
    assert result.value == pytest.approx(np.linalg.eigvalsh(H.astype(float))[-1], rel=1e-5)
    assert result.residual > 0


def test_a_given_matrix_of_wide_spectrum_ends_in_one_pass():
    diagonal = -np.logspace(0, 6, 200)
    result = geodiag.sharpness(np.diag(diagonal))
    assert result.num_hvps <= 201
    # Rounding of ‖H‖ = 1e6 is all that can be asked for: 1e6 · 2e-16 · a few dozen.
    assert result.value == pytest.approx(-1.0, abs=1e-8)


def test_a_basis_too_small_ends_at_its_budget():
    diagonal = -np.logspace(0, 6, 1200)
    result = geodiag.sharpness(np.diag(diagonal), estimator=Lanczos(8), max_hvps=100)
    assert result.status is Status.BUDGET
    assert result.bound is Bound.LOWER
    assert result.value <= -1.0


@pytest.mark.parametrize("as_operator", [False, True])
def test_one_steep_coordinate_is_found_in_l1(as_operator):
    # Every vertex of the ℓ1 ball is a local maximum here; S = max H_ii (H is diagonal and ⪰ 0).
    diagonal = np.ones(200)
    diagonal[137] = 1.5
    H = operator(diagonal) if as_operator else np.diag(diagonal)
    result = geodiag.sharpness(H, "l1")
    assert result.value == pytest.approx(1.5, rel=1e-12)
    if as_operator:
        assert result.num_hvps <= 60


def test_a_larger_budget_is_spent():
    A = np.random.default_rng(0).standard_normal((14, 14))
    H = A @ A.T
    apply = LinearOperator(H.shape, matvec=lambda x: H @ x, dtype=float)
    small, large = (geodiag.sharpness(apply, "linf", max_hvps=k) for k in (30, 400))
    assert small.num_hvps <= 30
    assert 390 <= large.num_hvps <= 400
    # All 2¹³ pairs of corners: the maximum, since H ⪰ 0.
    signs = 1 - 2 * ((np.arange(2**13)[:, None] >> np.arange(14)) & 1)
    truth = np.einsum("ki,ij,kj->k", signs, H, signs).max()
    assert large.value == pytest.approx(truth, rel=1e-9)


def test_blockwise_says_when_its_joint_ascent_was_cut():
    A = np.random.default_rng(1).standard_normal((50, 50))
    H = A + A.T
    for i in range(0, 50, 5):
        H[i : i + 5, i : i + 5] *= 0.2  # the blocks alone say little: their mixtures are larger
    apply = LinearOperator(H.shape, matvec=lambda x: H @ x, dtype=float)
    shapes = {f"b{i}": (5,) for i in range(10)}
    cut = geodiag.sharpness(apply, "block", shapes=shapes, max_hvps=90)  # 8 for each of 10 parts
    long = geodiag.sharpness(apply, "block", shapes=shapes, max_hvps=2000)
    assert cut.status is Status.BUDGET
    assert long.status is Status.CONVERGED
    assert long.value > cut.value


def test_progress_never_exceeds_the_value_and_counts_upwards():
    seen = []
    norm = norms.SumOver(norms.L2(), radii=0.1)
    shapes = {"a": (10,), "b": (20,)}
    result = geodiag.sharpness(
        np.diag(np.arange(1.0, 31.0)), norm, shapes=shapes, progress=seen.append
    )
    assert result.value == pytest.approx(0.3, rel=1e-8)  # 30 · 0.1²
    assert max(each["value"] for each in seen) <= result.value * (1 + 1e-12)
    counts = [each["num_hvps"] for each in seen]
    assert counts == sorted(counts)


def test_a_loop_goes_on_after_a_failure():
    def oracle(fail):
        calls = []

        def matvec(x):
            calls.append(1)
            return np.full(20, np.nan) if fail and len(calls) > 6 else np.arange(20.0) * np.ravel(x)

        return LinearOperator((20, 20), matvec=matvec, dtype=float)

    failed = geodiag.sharpness(oracle(True), "linf", throw=False)
    assert failed.status is Status.NON_FINITE
    assert failed.num_hvps >= 1
    for start in (failed, failed.state):
        again = geodiag.sharpness(oracle(False), "linf", start=start)
        assert again.value == pytest.approx(190.0, rel=1e-9)  # tr H


def test_a_failed_decomposition_is_not_finite():
    class Failing(geodiag.Norm):
        calls = 0

        def value(self, d):
            return np.max(np.abs(d["x"]))

        def lmo(self, g):
            Failing.calls += 1
            if Failing.calls > 3:
                raise np.linalg.LinAlgError("SVD did not converge")
            return {"x": np.sign(g["x"])}

    with pytest.raises(errors.NonFiniteError, match="SVD did not converge"):
        geodiag.sharpness(np.eye(30), Failing())
    assert geodiag.sharpness(np.eye(30), Failing(), throw=False).status is Status.NON_FINITE


@pytest.mark.parametrize("seed", [-1, 1.5, None, "0"])
def test_seeds_are_checked(seed):
    with pytest.raises(errors.ArgumentError, match="seed"):
        geodiag.sharpness(np.eye(2), seed=seed)


@pytest.mark.parametrize(
    "extra",
    [{"where": "x"}, {"params": {"x": 1}}, {"data": [1]}, {"criterion": print}, {"engine": "x"}],
)
def test_a_matrix_refuses_what_it_has_no_use_for(extra):
    with pytest.raises(errors.ArgumentError, match=next(iter(extra))):
        geodiag.sharpness(np.eye(2), **extra)


def test_floats_with_provenance_survive_copies():
    threshold = geodiag.threshold(np.float32(0.5), momentum=0.5)
    d = geodiag.directional_smoothness(np.eye(2), {"x": np.ones(2)})
    for value in (threshold, d):
        for twin in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
            assert repr(twin) == repr(value)
            assert twin == value


def test_the_remainder_is_of_the_step_that_was_taken():
    # L = (w − 1000) + ½(w − 1000)² in float32: adding 1e-3 to 1000 rounds it to a multiple of 6e-5.
    def loss(p):
        return (p["w"][0] - np.float32(1000)) + (p["w"][0] - np.float32(1000)) ** 2 / 2

    def gradient(p):
        return {"w": 1 + (p["w"] - np.float32(1000))}

    params = {"w": np.array([1000.0], dtype=np.float32)}
    for step in (1e-2, 3e-3):
        s = {"w": np.array([step], dtype=np.float32)}
        d = geodiag.directional_smoothness((loss, gradient), s, params=params)
        assert abs(d - 1.0) <= d.rounding
        assert d.rounding < 0.1
    s = {"w": np.array([1e-9], dtype=np.float32)}
    with pytest.raises(errors.ArgumentError, match="lost to rounding"):
        geodiag.directional_smoothness((loss, gradient), s, params=params)


def test_held_parameters_are_frozen_too():
    params = {"w": np.ones(2), "held": np.ones(2)}
    pair = (
        lambda p: np.sum(p["w"] ** 2 * p["held"]),
        lambda p: {"w": 2 * p["w"] * p["held"], "held": p["w"] ** 2},
    )
    oracle = geodiag.problem(pair, params=params, where="w").at()
    params["held"][:] = 5.0
    assert float(oracle.loss()) == 2.0


def test_starts_one_is_one():
    seen = geodiag.sharpness(np.diag(np.arange(30.0)), "linf", estimator=Ascent(1), max_hvps=9)
    assert seen.num_hvps <= 9
