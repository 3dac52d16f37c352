"""Certificates: the eigenvalue bound against dense eigenvalues, closed forms, bad input.

Dense eigenvalues (LAPACK) and closed forms share nothing with Lanczos or the lift.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator

import geodiag
from geodiag.certificates import burer_monteiro, certificate
from geodiag.certificates.certificate import certify
from geodiag.certificates.eigenvalue_bound import bound_top
from geodiag.core.stacks import gram
from geodiag.envelopes import Form
from geodiag.errors import ArgumentError, NonFiniteError, NormError
from geodiag.norms import L2, FromFunctions, Linf, Preconditioned, Spectral, SumOver
from geodiag.oracles.dense import MatrixProblem
from geodiag.oracles.wrappers import CountingOracle
from tests.conftest import EAGER
from tests.truth import cube_faces, symmetric

PLAIN = Form(1.0, lambda x: x, lambda x: x, lambda x: x)


def certified(H, norm, shapes=None, **options):
    oracle = CountingOracle(MatrixProblem(H, shapes).at())
    bound = norm.bind(oracle.space)
    witness = bound.lmo(oracle.space.random(np.random.default_rng(5)))
    return certify(oracle, bound, witness, **options)


@pytest.mark.parametrize("spectrum", ["linear", "clustered", "negative", "outlier"])
def test_eigenvalue_bound(spectrum):
    n = 60
    values = {
        "linear": np.linspace(-1, 1, n),
        "clustered": np.r_[np.linspace(-1, 0.5, n - 8), 1 - 1e-3 * np.arange(8)],
        "negative": -np.linspace(1, 2, n),
        "outlier": np.r_[np.zeros(n - 2), 1.0, -30.0],
    }[spectrum]
    H = symmetric(n, 3, values)
    for limit in (1, 2, 5, 20, 60):
        noise = {"x": np.random.default_rng(limit).standard_normal(n)}
        found = bound_top(lambda d: {"x": d["x"] @ H}, PLAIN, noise, 1e-6, limit, 1e-9, -np.inf)
        assert found.values[-1] - 1e-12 <= values.max() <= found.upper
        np.testing.assert_allclose(found.images["x"], found.ritz["x"] @ H, atol=1e-11)
        np.testing.assert_allclose(
            gram(found.ritz, found.ritz), np.eye(len(found.values)), atol=1e-11
        )
    assert found.upper <= values.max() + 0.02 * np.ptp(values)


def test_a_run_that_knows_its_form_to_be_poor_ends_early():
    """The eigenvalues are 1, …, 60 sixtieths: one above 0.8 is seen in less than half the steps."""
    H = np.diag(np.arange(1, 61) / 60.0)
    noise = {"x": np.random.default_rng(0).standard_normal(60)}

    def run(spoilt):
        return bound_top(lambda d: {"x": d["x"] @ H}, PLAIN, noise, 1e-6, 40, 1e-9, 0.0, spoilt)

    found, whole = run(0.8), run(np.inf)
    assert 1 < len(found.values) <= 20
    assert len(whole.values) == len(run(1.0).values) == 40
    assert found.values[-2] < 0.8 < found.values[-1]
    assert found.upper >= 1.0  # as good as so few steps give


@pytest.mark.parametrize("seed", range(5))
def test_a_mended_form_bounds_as_well(seed, monkeypatch):
    """The first run is made to find every form poor: the second is all that there is."""
    calls = []

    def counted(*arguments):
        calls.append(bound_top(*arguments))
        return calls[-1]

    monkeypatch.setattr(burer_monteiro, "bound_top", counted)
    H = symmetric(6, seed, np.random.default_rng(seed).standard_normal(6))
    plain = certified(H, Linf()).upper
    before = len(calls)
    monkeypatch.setattr(certificate, "RUNS", ((0.8, 0.0), (0.2, np.inf)))
    upper = certified(H, Linf()).upper
    assert len(calls) == before + 2
    assert len(calls[-2].values) < len(calls[-1].values)
    assert cube_faces(H) <= upper <= 1.02 * plain


def test_where_few_products_are_kept_the_first_run_is_the_last(monkeypatch):
    """Another would find the lift's products crowded out."""
    calls = []

    def counted(*arguments):
        calls.append(bound_top(*arguments))
        return calls[-1]

    monkeypatch.setattr(burer_monteiro, "bound_top", counted)
    monkeypatch.setattr(certificate, "RUNS", ((0.8, 0.0), (0.2, np.inf)))
    monkeypatch.setattr(certificate, "MEMORY", 0)
    H = symmetric(6, 0, np.random.default_rng(0).standard_normal(6))
    upper = certified(H, Linf()).upper
    assert len(calls) == 1
    assert cube_faces(H) <= upper


def test_the_failure_probability_is_what_it_says():
    """With δ = 0.3 and few steps the bound fails, sometimes: rarely enough, and not never."""
    H = np.diag(np.r_[1.0, np.linspace(0.97, -1, 39)])
    failures = 0
    for seed in range(400):
        noise = {"x": np.random.default_rng(seed).standard_normal(40)}
        found = bound_top(lambda d: {"x": d["x"] @ H}, PLAIN, noise, 0.3, 8, 1e-9)
        failures += found.upper < 1.0
    # Binomial(400, 0.3): 120 expected at most, 5 standard deviations are 46.
    assert 0 < failures <= 166


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_closed_forms(scale, dtype):
    v = np.random.default_rng(0).standard_normal(12).astype(dtype)
    H = (np.outer(v, v) * scale).astype(dtype)
    assert certified(H, Linf()).upper == pytest.approx(scale * np.abs(v).sum() ** 2, rel=2e-2)
    diagonal = np.diag(np.abs(v) * np.asarray(scale, dtype))
    assert certified(diagonal, Linf()).upper == pytest.approx(scale * np.abs(v).sum(), rel=2e-2)
    shapes = {"W": (3, 4)}
    nuclear = np.linalg.svd(v.reshape(3, 4), compute_uv=False).sum()
    assert certified(H, Spectral(), shapes).upper == pytest.approx(scale * nuclear**2, rel=2e-2)


def test_block_norm_of_a_convex_problem_is_tight():
    H = symmetric(12, 1, np.linspace(0, 5, 12))
    truth = max(np.linalg.eigvalsh(H[:5, :5])[-1], np.linalg.eigvalsh(H[5:, 5:])[-1])
    upper = certified(H, SumOver(L2()), {"a": (5,), "b": (7,)}).upper
    assert truth <= upper <= 1.01 * truth
    upper = certified(H, SumOver(L2(), {"a": 2.0, "b": 0.1}), {"a": (5,), "b": (7,)}).upper
    truth = 4 * np.linalg.eigvalsh(H[:5, :5])[-1]
    assert truth <= upper <= 1.01 * truth


def test_a_users_metric_without_a_root():
    P = symmetric(9, 2, np.geomspace(0.01, 100, 9))
    H = symmetric(9, 4)
    factor = np.linalg.inv(np.linalg.cholesky(P))
    truth = np.linalg.eigvalsh(factor @ H @ factor.T)[-1]
    assert truth <= certified(H, Preconditioned(P)).upper <= 1.01 * truth


@pytest.mark.parametrize("budget", [4, 5, 17, 60])
def test_budget_is_kept_and_the_same_seed_gives_the_same(budget):
    H = symmetric(20, 0)
    one, two = (certified(H, Linf(), max_hvps=budget, seed=3) for _ in range(2))
    assert one.num_hvps <= budget
    assert one.upper == two.upper
    assert "1e-06" in one.notes[0]


# JAX compiles this for seconds; tests/geodiag_jax/test_problem.py has a certificate of a loss.
@pytest.mark.parametrize("xp", [*EAGER, pytest.param("jax", marks=pytest.mark.slow)], indirect=True)
def test_every_namespace_gives_the_same(xp):
    host = symmetric(8, 6)
    H = xp.asarray(host)
    shapes = {"W": (2, 3), "b": (2,)}
    ours = certified(H, Spectral(), shapes, max_hvps=14).upper
    assert ours == pytest.approx(certified(host, Spectral(), shapes, max_hvps=14).upper, rel=1e-6)


@pytest.mark.parametrize("budget", [4, 8, 12, 20, 40])
def test_few_products_still_bound(budget):
    """Nothing has converged by then: neither t(P) alone nor a Ritz value would be a bound."""
    h = np.r_[np.geomspace(0.01, 1, 39), 5.0]
    H = np.diag(h)
    for seed in range(5):
        assert certified(H, L2(), max_hvps=budget, seed=seed).upper >= 5.0
        assert certified(H, Linf(), max_hvps=budget, seed=seed).upper >= h.sum() * (1 - 1e-12)
        # One matrix parameter and ⟨D, D A⟩: the sum of A's largest eigenvalues, as many as rows.
        A = np.diag(h[-8:])
        found = certified(np.kron(np.eye(5), A), Spectral(), {"W": (5, 8)}, max_hvps=budget)
        assert found.upper >= h[-5:].sum() * (1 - 1e-12)


def test_little_memory_still_bounds(monkeypatch):
    monkeypatch.setattr(certificate, "MEMORY", 0)
    H = symmetric(40, 5, np.linspace(0.1, 5, 40))
    found = certified(H, L2(), max_hvps=100)
    assert found.upper >= 5.0
    oracle = CountingOracle(MatrixProblem(np.diag(np.linspace(0.1, 5, 40))).at())
    bound = Linf().bind(oracle.space)
    assert certify(oracle, bound, {"x": np.ones(40)}, max_hvps=100).upper >= 102.0 * (1 - 1e-12)


@pytest.mark.parametrize("after", [25, 60, 90])
def test_a_late_nan_says_what_it_is(after):
    """Early and late in the lift, and in Lanczos."""
    H, count = symmetric(40, 5), 0

    def product(v):
        nonlocal count
        count += 1
        return H @ v * (np.nan if count > after else 1.0)

    def measured(throw):
        nonlocal count
        count = 0
        operator = LinearOperator((40, 40), matvec=product, dtype=np.float64)
        return geodiag.sharpness(
            operator, "spectral", shapes={"W": (5, 8)}, certificate=True, max_hvps=150, throw=throw
        )

    with pytest.raises(NonFiniteError, match=r"Hessian-vector product is not finite"):
        measured(True)
    assert measured(False).status is geodiag.Status.NON_FINITE


def test_starts_are_unit_directions():
    H = symmetric(12, 7)
    found = certified(H, Linf(), max_hvps=40)
    assert found.starts
    assert all(np.abs(d["x"]).max() == 1.0 for d in found.starts)


def test_bad_input():
    plain = FromFunctions(lambda d: np.abs(d["x"]).max(), lambda g: {"x": np.sign(g["x"])})
    with pytest.raises(NormError, match=r"Norm\.envelope"):
        certified(np.eye(3), plain)
    with pytest.raises(ArgumentError, match="max_hvps=3"):
        certified(np.eye(3), Linf(), max_hvps=3)
    with pytest.raises(ArgumentError, match="delta"):
        certified(np.eye(3), Linf(), delta=0.0)
    oracle = CountingOracle(MatrixProblem(np.eye(3)).at())
    oracle.inner.hvp = oracle.inner.hvps = lambda d: {"x": d["x"] * np.nan}
    with pytest.raises(NonFiniteError):
        certify(oracle, Linf(), {"x": np.ones(3)})
