"""Scanned layers in JAX: norms, steps and optax's Muon see a matrix in each layer.

The truth is NumPy's, layer by layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

import geodiag
import geodiag_jax
from geodiag import errors
from geodiag.norms import Muon, Nuclear, Spectral, Stacked
from geodiag_jax.pytree import read

L, IN, OUT = 3, 2, 5
rng = np.random.default_rng(0)
PARAMS = {"layers": {"kernel": jnp.asarray(rng.standard_normal((L, IN, OUT)))}}
G = {"layers": {"kernel": jnp.asarray(rng.standard_normal((L, IN, OUT)))}}
LAYERS = np.asarray(G["layers"]["kernel"])
LR = 0.1
DIMS = optax.contrib.MuonDimensionNumbers(-2, -1)


def polar(m):
    u, _, vt = np.linalg.svd(m, full_matrices=False)
    return u @ vt


def kernel(tree):
    return np.asarray(tree["layers"]["kernel"])


def bound(norm):
    return norm.bind(read(PARAMS, None).space), {"layers.kernel": G["layers"]["kernel"]}


def test_dual_norms():
    nuclear = [np.linalg.norm(m, "nuc") for m in LAYERS]
    norm, g = bound(Stacked(Spectral(), {"layers": 1}))
    assert float(norm.dual(g)) == pytest.approx(sum(nuclear))
    norm, g = bound(Stacked(Nuclear(), {"layers": 1}))
    assert float(norm.dual(g)) == pytest.approx(max(np.linalg.norm(m, 2) for m in LAYERS))
    norm, g = bound(Stacked(Muon(), {"layers": 1}))  # outputs are the last axis
    assert float(norm.dual(g)) == pytest.approx((OUT / IN) ** 0.5 * sum(nuclear))


@pytest.mark.parametrize("jitted", [False, True])
def test_non_euclidean_gd(jitted):
    tx = geodiag_jax.non_euclidean_gd(LR, Stacked(Spectral(), {"layers": 1}), normalized=True)
    update = jax.jit(tx.update) if jitted else tx.update
    updates, _ = update(G, tx.init(PARAMS), PARAMS)
    for found, m in zip(kernel(updates), LAYERS, strict=True):
        np.testing.assert_allclose(found, -LR * polar(m), atol=1e-12)


EXACT = {"ns_coeffs": 25 * ((1.875, -1.25, 0.375),), "ns_steps": 25, "beta": 0.0, "nesterov": False}


class TestMuon:
    def step(self, told, params=PARAMS, g=G, **built):
        tx = optax.contrib.muon(LR, **EXACT, muon_weight_dimension_numbers=told, **built)
        updates, state = tx.update(g, tx.init(params), params)
        return updates, state

    def read(self, state, told, params=PARAMS, **hyperparams):
        options = {"beta": 0.0, "muon_weight_dimension_numbers": told} | hyperparams
        return geodiag_jax.geometry(state, params, lr=LR, hyperparams=options)

    @pytest.mark.parametrize(
        "told",
        [DIMS, {"layers": {"kernel": DIMS}}, lambda p: jax.tree_util.tree_map(lambda _: DIMS, p)],
    )
    @pytest.mark.parametrize("rms", [None, 0.2])
    def test_its_steps_are_the_norms(self, told, rms):
        updates, state = self.step(told, consistent_rms=rms)
        norm, update = self.read(state, told, consistent_rms=rms)
        norm = norm.bind(read(PARAMS, None).space)
        found = norm.lmo({"layers.kernel": G["layers"]["kernel"]})["layers.kernel"]
        np.testing.assert_allclose(kernel(updates), -LR * found, atol=1e-5)
        assert float(norm.dual({"layers.kernel": G["layers"]["kernel"]})) == pytest.approx(
            sum(np.linalg.norm(m, "nuc") for m in LAYERS)
            * ((OUT / IN) ** 0.5 if rms is None else 0.2 * OUT**0.5)
        )
        assert update.unknown == ""

    def test_transposed_matrices(self):
        """Outputs first, as optax was told: the radius is √(out/in) = √(5/2) all the same."""
        params = {"w": jnp.asarray(rng.standard_normal((OUT, IN)))}
        told = optax.contrib.MuonDimensionNumbers(1, 0)
        updates, state = self.step(told, params, params)
        norm, _ = self.read(state, told, params)
        found = norm.bind(read(params, None).space).lmo(params)["w"]
        np.testing.assert_allclose(np.asarray(updates["w"]), -LR * found, atol=1e-5)
        assert np.linalg.norm(np.asarray(updates["w"]), 2) == pytest.approx(LR * 2.5**0.5)

    def test_heads_side_by_side(self):
        """(in, heads, size) orthogonalised as in × (heads · size)."""
        params = {"w": jnp.asarray(rng.standard_normal((3, 2, 4)))}
        told = optax.contrib.MuonDimensionNumbers(0, (1, 2))
        updates, state = self.step(told, params, params)
        norm, _ = self.read(state, told, params)
        found = norm.bind(read(params, None).space).lmo(params)["w"]
        np.testing.assert_allclose(np.asarray(updates["w"]), -LR * found, atol=1e-5)

    def test_untold(self):
        _, state = self.step(DIMS)
        with pytest.raises(errors.ArgumentError, match="is not known"):
            geodiag_jax.geometry(state, PARAMS, lr=LR)

    def test_a_wrong_answer_is_seen_in_the_step(self):
        updates, state = self.step(DIMS)
        wrong = optax.contrib.MuonDimensionNumbers((0, 1), 2)
        options = {"beta": 0.0, "muon_weight_dimension_numbers": wrong}
        slopes = {"layers.kernel": G["layers"]["kernel"]}
        for told, expected in ((wrong, "the step differs"), (DIMS, "")):
            options["muon_weight_dimension_numbers"] = told
            space = read(PARAMS, None).space
            found = geodiag_jax.optimizers.geometry.read_geometry(state, space, LR, options)
            here = {"layers.kernel": PARAMS["layers"]["kernel"]}
            there = {"layers.kernel": here["layers.kernel"] + updates["layers"]["kernel"]}
            assert found.compare(here, there, slopes).unknown.startswith(expected)
            assert bool(found.compare(here, there, slopes).unknown) == bool(expected)


def test_sharpness_of_a_scan():
    """H of Σ_l ‖W_l‖²/2·c_l is diagonal: S is the sum over layers of c_l times the rank."""
    c = np.array([1.0, 2.0, 4.0])

    def loss(params):
        return jnp.sum(jnp.asarray(c)[:, None, None] * params["layers"]["kernel"] ** 2) / 2

    found = geodiag.sharpness(loss, Stacked(Spectral(), {"layers": 1}), params=PARAMS)
    assert float(found) == pytest.approx(IN * c.sum(), rel=1e-6)
    found = geodiag.sharpness(loss, Stacked(Nuclear(), {"layers": 1}), params=PARAMS)
    assert float(found) == pytest.approx(c.max(), rel=1e-6)
