"""Every registered norm over several tensors: value, dual and LMO against formulas in NumPy.

The LMO is judged by what defines it: it lies in the unit ball of the *formula*, and ⟨g, lmo(g)⟩ is
the dual norm of the *formula*.
"""

from __future__ import annotations

import numpy as np
import pytest

from geodiag import available_norms, norms
from geodiag.core.spaces import Space
from geodiag.plugins import registry
from tests import truth

N = 20
NAMES = sorted(truth.NORMS)


def test_every_registered_norm_has_a_formula_here():
    assert set(available_norms()) >= set(NAMES) | {"preconditioned"}
    assert len(NAMES) == 9


def made(name, host):
    return registry.norm(name).bind(Space.of(host))


@pytest.mark.parametrize("name", NAMES)
def test_value_dual_and_lmo(name, xp, dtype):
    value, dual = truth.NORMS[name]
    tol = truth.tolerance(dtype, N)
    for seed in range(3):
        host = truth.back(truth.to(np, truth.blocks(seed), dtype))  # what the cast left
        g = truth.to(xp, host, dtype)
        norm = made(name, g)
        assert float(norm.value(g)) == pytest.approx(value(host), rel=tol)
        assert float(norm.dual(g)) == pytest.approx(dual(host), rel=tol)
        answer = norm.lmo(g)
        assert norm.value(g).dtype == norm.dual(g).dtype == getattr(xp, dtype)
        assert norm.value(g).shape == norm.dual(g).shape == ()
        for key, x in answer.items():
            assert x.dtype == g[key].dtype
            assert tuple(x.shape) == host[key].shape
        best = truth.back(answer)
        assert value(best) <= 1 + tol
        assert truth.inner(host, best) == pytest.approx(dual(host), rel=tol)


@pytest.mark.parametrize("name", NAMES)
def test_the_lmo_beats_what_scipy_free_search_finds(name):
    """No sampled direction has a larger ⟨g, d⟩/‖d‖ than the dual norm of the formula."""
    value, dual = truth.NORMS[name]
    g = truth.blocks(7)
    rng = np.random.default_rng(0)
    best = 0.0
    for _ in range(300):
        d = {n: rng.standard_normal(x.shape) + 2 * x for n, x in g.items()}
        best = max(best, truth.inner(g, d) / value(d))
    reached = truth.inner(g, truth.back(made(name, g).lmo(g)))
    assert best <= reached
    assert reached == pytest.approx(dual(g), rel=1e-12)


def test_lmo_by_the_table(xp):
    """The table's own formulas, entry by entry, for one matrix of full rank."""
    G = np.array([[3.0, -1.0, 2.0], [0.5, 4.0, -2.0]])
    g = {"W": xp.asarray(G)}
    U, _, Vt = np.linalg.svd(G, full_matrices=False)
    biggest = np.zeros_like(G)
    biggest[1, 1] = 1.0
    table = {
        "l2": G / np.linalg.norm(G),
        "linf": np.sign(G),
        "l1": biggest,
        "block": G / np.linalg.norm(G),
        "frobenius": G / np.linalg.norm(G),
        "rms": np.sqrt(6.0) * G / np.linalg.norm(G),
        "spectral": U @ Vt,
        "muon": U @ Vt,  # rows < cols: radius 1
        "nuclear": np.outer(U[:, 0], Vt[0]),
    }
    assert set(table) == set(NAMES)
    for name, expected in table.items():
        got = np.asarray(made(name, g).lmo(g)["W"])
        # Polar factors of a matrix with condition number 2: a few ε.
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14, err_msg=name)


def test_l1_moves_the_largest_entry_whatever_its_sign(xp):
    g = {"a": xp.asarray([1.0, 2.0]), "b": xp.asarray([[0.0, -5.0]])}
    got = truth.back(norms.L1().lmo(g))
    assert np.array_equal(got["a"], [0.0, 0.0])
    assert np.array_equal(got["b"], [[0.0, -1.0]])


def test_ties_still_give_a_point_of_the_ball(xp):
    g = truth.to(xp, {"a": np.array([1.0, -1.0]), "b": np.array([[-1.0]])})
    for name in NAMES:
        value, dual = truth.NORMS[name]
        answer = truth.back(made(name, g).lmo(g))
        assert value(answer) <= 1 + 1e-14, name
        assert truth.inner(truth.back(g), answer) == pytest.approx(dual(truth.back(g)), rel=1e-14)


def test_a_single_tensor_of_l2_kind_is_a_quadratic_norm():
    """What lets Lanczos treat it: one part of ℓ2 collapses to a QuadraticNorm."""
    vector = Space({"x": (5,)})
    for name in ("block", "frobenius", "spectral", "nuclear", "rms"):
        bound = registry.norm(name).bind(vector)
        assert isinstance(bound, norms.QuadraticNorm), name
    for shape in ((1, 5), (5, 1)):  # one singular value
        for name in ("spectral", "nuclear", "muon"):
            bound = registry.norm(name).bind(Space.of({"W": np.ones(shape)}))
            assert isinstance(bound, norms.QuadraticNorm), (name, shape)
    radius = registry.norm("rms").bind(vector)
    assert float(radius.value({"x": np.ones(5)})) == pytest.approx(1.0, rel=1e-15)
    two = Space({"x": (5,), "y": (2,)})
    assert not isinstance(registry.norm("block").bind(two), norms.QuadraticNorm)
