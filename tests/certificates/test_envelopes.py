"""Envelopes: ⟨d, Pd⟩ ≤ t·‖d‖² for many d, and apply, solve and root are one form.

The inequality is tried at extreme points and at random; the optimal P of a single image is known in
closed form (ℓ∞: |g|; operator norm: half the absolute values of the matrix on either side).
"""

from __future__ import annotations

import numpy as np
import pytest

from geodiag.blocks import stack
from geodiag.core.spaces import Space
from geodiag.core.stacks import gram, one
from geodiag.envelopes import euclidean
from geodiag.norms import (
    L1,
    L2,
    L2Over,
    Linf,
    Muon,
    Norm,
    Nuclear,
    Preconditioned,
    Scaled,
    Spectral,
    SumOver,
)
from tests.conftest import BACKENDS, EAGER
from tests.truth import SHAPES, blocks, to

DIAGONAL = {name: np.abs(x) + 0.1 for name, x in blocks(9).items()}
NORMS: dict[str, Norm] = {
    "l1": L1(),
    "l2": L2(),
    "linf": Linf(),
    "spectral": Spectral(),
    "spectral with radii": Spectral({"W$": 0.3}),
    "muon": Muon(),
    "block": SumOver(L2(), {"b$": 2.0}),
    "nuclear": Nuclear(),
    "l2 of linf": L2Over(Linf(), {"b$": 2.0}),
    "scaled": Scaled(Spectral(), 3.0),
    "preconditioned": Preconditioned(DIAGONAL),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(
    ("xp", "dtype"),
    [  # JAX would compile all of it again in float32
        *((b, "float64") for b in BACKENDS),
        *((b, "float32") for b in EAGER),
    ],
    indirect=True,
)
def test_the_form_stays_below_the_norm(name, xp, dtype):
    images = to(xp, stack([blocks(seed) for seed in range(3)]), dtype)
    space = Space.of(to(xp, blocks(0), dtype))
    norm = NORMS[name].bind(space)
    envelope = norm.envelope(space)
    weights = envelope.fit(images)
    gs = [to(xp, blocks(100 + seed), dtype) for seed in range(8)]
    ds = [d for g in gs for d in (g, norm.lmo(g))]
    lengths = np.array([float(norm.value(d)) for d in ds])
    ds = stack(ds)
    for each in (weights, envelope.fit(images, weights), envelope.interior()):
        form = envelope.form(each)
        tightest = np.max(np.diag(gram(ds, form.apply(ds))) / lengths**2)
        assert tightest <= form.bound * (1 + 64 * float(np.finfo(dtype).eps) * 24)
        assert tightest >= 0.05 * form.bound  # not by way of a bound that is far off


@pytest.mark.parametrize("name", NORMS)
def test_solve_and_root_belong_to_apply(name, xp):
    space = Space.of(to(xp, blocks(0)))
    envelope = NORMS[name].bind(space).envelope(space)
    images = to(xp, stack([blocks(seed) for seed in range(4)]))
    form = envelope.form(envelope.fit(images))
    again = form.apply(form.solve(images))
    np.testing.assert_allclose(gram(again, images), gram(images, images), rtol=1e-8)
    if form.root is None:  # only where the user's metric has none
        assert name == "preconditioned"
        return
    n = sum(int(np.prod(s)) for s in SHAPES.values())
    unit = np.eye(n)
    flat, at = {}, 0
    for key, shape in SHAPES.items():
        size = int(np.prod(shape))
        flat[key] = unit[:, at : at + size].reshape(n, *shape)
        at += size
    root = form.root(to(xp, flat))
    # Row i of root is F e_i: F Fᵀ = P⁻¹, by its products with P on either side of nothing.
    inverse = gram(form.solve(to(xp, flat)), to(xp, flat))
    F = gram(root, to(xp, flat))
    np.testing.assert_allclose(F.T @ F, inverse, rtol=1e-7, atol=1e-9 * np.abs(inverse).max())


def test_best_forms_of_one_image():
    g = blocks(3)
    space = Space.of(g)
    p = Linf().envelope(space).fit(one(g))
    for weights, x in zip(p, g.values(), strict=True):
        np.testing.assert_allclose(weights, np.abs(x))
    own = space.select(["c.W"])
    norm = Spectral().bind(own)
    envelope = norm.envelope(own)
    left, right = envelope.fit(one({"c.W": g["c.W"]}))
    # ⟨D, G⟩ at D = UVᵀ is tr L + tr R, and L D + D R = G.
    np.testing.assert_allclose(np.trace(left) + np.trace(right), norm.dual({"c.W": g["c.W"]}))
    d = norm.lmo({"c.W": g["c.W"]})["c.W"]
    np.testing.assert_allclose(left @ d + d @ right, g["c.W"], atol=1e-10)


def test_fit_is_best_among_its_like():
    """No other form has less ⟨G, P⁻¹G⟩ + t(P): tried at other scales and other images' fits."""
    space = Space.of(blocks(0))
    images = stack([blocks(seed) for seed in range(3)])
    for name, norm in NORMS.items():
        if name == "preconditioned":
            continue
        envelope = norm.bind(space).envelope(space)

        def cost(weights, envelope=envelope):
            form = envelope.form(weights)
            return float(np.trace(gram(images, form.solve(images)))) + form.bound

        best = envelope.fit(images)
        others = [envelope.fit(stack([blocks(s) for s in range(k, k + 3)])) for k in (1, 2, 7)]
        others += [tuple(w * c for w in best) for c in (0.5, 0.9, 1.1, 2.0)]
        # The fixed point of the operator norm is near its end, not at it.
        assert all(cost(best) <= 1.0001 * cost(other) for other in others), name


def test_a_plugin_declares_its_envelope_in_one_line():
    class Weighted(Norm):
        """max(‖d‖₂, 3|d_0|) has ‖d‖₂ ≤ ‖d‖."""

        def value(self, d):
            return np.maximum(np.sqrt(np.sum(d["x"] ** 2)), 3 * np.abs(d["x"][0]))

        def lmo(self, g):
            return {"x": 0 * g["x"]}

        def envelope(self, space):
            return euclidean(space)

    space = Space.of({"x": np.ones(3)})
    assert Weighted().envelope(space).bound(Weighted().envelope(space).interior()) == 1.0
    assert euclidean(space, 2.5).form(euclidean(space).interior()).bound == 2.5
