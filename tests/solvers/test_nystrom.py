"""The Nyström surrogate against the dense matrix that its products came from.

Ĥ inverts what exceeds 1e-3 of the largest eigenvalue of DᵀHD, so rounding is amplified by 1e3 at
most: n·ε·1e3 relative to ‖H‖, and the usual 64 (tests.truth.tolerance).
"""

from __future__ import annotations

import numpy as np
import pytest

from geodiag.norms import Linf
from geodiag.solvers.nystrom import (
    ALIKE,
    RANK,
    Products,
    add,
    fit,
    krylov,
    propose,
    spare,
)
from tests import truth
from tests.quadratic import Quadratic

N = 9
SPECTRA = {
    "positive": np.linspace(0.5, 3.0, N),
    "indefinite": np.r_[-np.linspace(1.0, 2.0, 4), np.linspace(1.0, 3.0, 5)],
    "rank two": np.r_[np.zeros(N - 2), 1.0, 2.0],
    "wide": np.geomspace(1e-9, 1.0, N),
    "zero": np.zeros(N),
}


def products(xp, dtype, H, D):
    """The pairs (d, Hd), as the library is told of them: one row at first, then the rest."""
    as_stack = lambda rows: {"x": xp.asarray(rows, dtype=getattr(xp, dtype))}  # noqa: E731
    D = D.astype(dtype).astype(float)
    first = Products(as_stack(D[:1] @ H), as_stack(D[:1] @ H @ D[:1].T)["x"])
    return add(first, as_stack(D[1:]), as_stack(D[1:] @ H))


def directions(count, seed=0):
    D = np.random.default_rng(seed).standard_normal((count, N))
    return D / np.linalg.norm(D, axis=1, keepdims=True)


def dense(surrogate, xp, dtype):
    """Ĥ, by its products with the unit vectors."""
    images = surrogate.images({"x": xp.asarray(np.eye(N), dtype=getattr(xp, dtype))})
    return np.asarray(images["x"]).astype(float)


@pytest.mark.parametrize("spectrum", ["positive", "indefinite"])
@pytest.mark.parametrize("count", [1, 5])
def test_exact_on_the_span(xp, dtype, spectrum, count):
    H, D = truth.symmetric(N, 1, SPECTRA[spectrum]), directions(count)
    small = np.abs(np.linalg.eigvalsh(D @ H @ D.T))
    assert small.min() > 2 * RANK * small.max()  # so that nothing is left out
    got = dense(fit(products(xp, dtype, H, D)), xp, dtype)
    np.testing.assert_allclose(D @ got, D @ H, atol=truth.tolerance(dtype, N) / RANK)


@pytest.mark.parametrize("spectrum", ["positive", "rank two", "wide", "zero"])
@pytest.mark.parametrize("repeated", [False, True])
def test_never_above_a_positive_matrix(dtype, spectrum, repeated):
    H, D = truth.symmetric(N, 2, SPECTRA[spectrum]), directions(5, seed=1)
    if repeated:  # and a direction of length zero among them
        D = np.vstack([D, D[:3], np.zeros((1, N))])
    got = dense(fit(products(np, dtype, H, D)), np, dtype)
    slack = truth.tolerance(dtype, N) / RANK * np.linalg.eigvalsh(H)[-1]
    assert np.linalg.eigvalsh(H - (got + got.T) / 2)[0] >= -slack
    ds = np.random.default_rng(3).standard_normal((2000, N))
    over = np.einsum("ki,ij,kj->k", ds, got - H, ds) / np.sum(ds * ds, axis=1)
    assert over.max() <= slack
    if spectrum == "rank two":  # which five directions determine
        np.testing.assert_allclose(got, H, atol=slack)


def test_empty_rows_change_nothing(dtype):
    H = truth.symmetric(N, 1, SPECTRA["positive"])
    full = products(np, dtype, H, directions(4))
    grown = spare(full, 6)
    assert grown.inner.shape == (10, 10)
    np.testing.assert_allclose(
        dense(fit(grown), np, dtype),
        dense(fit(full), np, dtype),
        atol=truth.tolerance(dtype, N) / RANK,
    )


@pytest.mark.parametrize(("before", "new", "rows"), [(5, 2, [0, 1, 4]), (4, 2, [0, 1])])
def test_new_rows_take_the_place_of_the_oldest(before, new, rows):
    H, D = truth.symmetric(N, 1, SPECTRA["indefinite"]), directions(before + new)
    held = products(np, "float64", H, D[:before])
    lengths = np.linspace(2.0, 5.0, new)[:, None]  # of a pair, whatever its length
    fresh = D[before:] * lengths
    kept = add(held, {"x": fresh}, {"x": fresh @ H}, keep=2)
    expected = np.vstack([D[rows], D[before:]])
    np.testing.assert_allclose(kept.images["x"], expected @ H, atol=1e-13)
    np.testing.assert_allclose(kept.inner, expected @ H @ expected.T, atol=1e-13)


@pytest.mark.parametrize("count", [5, N])
def test_a_lanczos_run_is_exact_on_its_krylov_space(xp, dtype, count):
    H = truth.symmetric(N, 4, SPECTRA["positive"])
    oracle = Quadratic(xp.asarray(H, dtype=getattr(xp, dtype)))
    first = np.ones(N)
    got = krylov(oracle, {"x": oracle.space.asarray(first)}, count)
    assert oracle.asked == count
    K = np.stack([np.linalg.matrix_power(H, k) @ first for k in range(count)])
    K /= np.linalg.norm(K, axis=1, keepdims=True)
    slack = truth.tolerance(dtype, N) / RANK
    np.testing.assert_allclose(K @ dense(fit(got), xp, dtype), K @ H, atol=slack)


@pytest.mark.parametrize("H", [np.eye(N), np.zeros((N, N)), np.diag(np.r_[2.0, np.zeros(N - 1)])])
def test_a_lanczos_run_that_has_seen_all_there_is(H):
    first = {"x": np.eye(N)[0]}
    surrogate = fit(krylov(Quadratic(H), first, 6))
    got = dense(surrogate, np, "float64")
    assert np.all(np.isfinite(got))
    np.testing.assert_allclose(got[0], H[0], atol=1e-12)
    assert np.linalg.eigvalsh(H - got)[0] >= -1e-12


def angles(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return np.abs(a @ b.T)


@pytest.mark.parametrize("with_known", [False, True])
def test_proposals_are_distinct_local_maxima(xp, with_known):
    """Of a positive definite Ĥ = H: corners d of the cube with sign(Hd) = d."""
    H = truth.symmetric(N, 5, SPECTRA["positive"])
    oracle = Quadratic(xp.asarray(H))
    surrogate = fit(products(xp, "float64", H, np.eye(N)))
    mixtures = xp.asarray(np.random.default_rng(0).standard_normal((40, N)))
    gradient = {"x": xp.asarray(np.ones(N))}

    def proposals(**extra):
        options = {"steps": 50, "count": 3} | extra
        return propose(oracle, Linf(), surrogate, mixtures, gradient, **options)["x"]

    found = proposals()
    if with_known:
        known = found[:1, ...]
        found = proposals(known={"x": 0.5 * known})
        assert angles(np.asarray(found), np.asarray(known)).max() <= ALIKE
    assert oracle.asked == 0
    found = np.asarray(found)
    assert (angles(found, found) - np.eye(3)).max() <= ALIKE
    values = np.einsum("ki,ij,kj->k", found, H, found)
    assert np.all(np.diff(values) <= 0)
    assert np.all(np.abs(found) == 1.0)
    assert np.all((found @ H) * found > 0)  # fixed points of d ↦ sign(Hd)


def test_empty_rows_do_no_harm_in_single_precision():
    """To matrices such as these LAPACK's float32 eigensolver answers NaN, or gives up."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    rows = [*range(8), 30, 31]
    for _ in range(100):
        small = np.zeros((10, 10))
        small[:8, :8] = np.diag(rng.uniform(2, 12, 8)) + np.diag(rng.uniform(1, 5, 7), 1)
        small[8:, :8], small[8:, 8:] = rng.standard_normal((2, 8)), np.diag(rng.uniform(4, 6, 2))
        inner = np.zeros((32, 32), np.float32)
        inner[np.ix_(rows, rows)] = (small + small.T) / 2
        images = np.zeros((32, 40), np.float32)
        images[rows] = rng.standard_normal((10, 40))
        surrogate = fit(Products({"x": torch.asarray(images)}, torch.asarray(inner)))
        found = surrogate.images({"x": torch.eye(40)})["x"].numpy()
        part = images[rows].astype(float)
        expected = part.T @ np.linalg.inv((small + small.T) / 2) @ part
        if np.linalg.cond((small + small.T) / 2) < 1e2:  # all of the rank is kept
            np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
        assert np.all(np.isfinite(found))
