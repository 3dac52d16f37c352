"""non_euclidean_gd against the formulas of each step, in NumPy.

Tolerance: norms and decompositions of a handful of order-one entries, 64·n·ε with n = 20: 3e-13.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import geodiag
from geodiag import errors
from geodiag.norms import L2, ByParameter, Linf, Preconditioned, Spectral
from geodiag_jax import non_euclidean_gd
from tests import truth
from tests.geodiag_jax.half import needs_float16
from tests.geodiag_jax.models import X, Y, logistic, logistic_params
from tests.optimizers.formulas import FORMULAS, polar

RTOL = 64 * 20 * np.finfo(float).eps
LR = 0.3
G = truth.blocks(5, {"W": (3, 4), "b": (3,), "k": (2, 2, 3)})


def close(got, want, rtol=RTOL):
    assert set(got) == set(want)
    for name, x in want.items():
        np.testing.assert_allclose(np.asarray(got[name]), x, rtol=rtol, atol=rtol, err_msg=name)


def device(host, dtype=jnp.float64):
    return {name: jnp.asarray(x, dtype) for name, x in host.items()}


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("normalized", [False, True], ids=["gradient", "normalized"])
@pytest.mark.parametrize("norm", FORMULAS)
def test_one_step(norm, normalized, jitted):
    lmo, dual = FORMULAS[norm]
    tx = non_euclidean_gd(LR, norm, normalized)
    g = device(G)
    update = jax.jit(tx.update) if jitted else tx.update
    got, _ = update(g, tx.init(g))
    length = 1.0 if normalized else dual(G)
    close(got, {name: -LR * length * x for name, x in lmo(G).items()})


def test_unnormalized_l2_is_gradient_descent():
    tx = non_euclidean_gd(LR, L2())
    got, _ = tx.update(device(G), tx.init(device(G)))
    close(got, {name: -LR * x for name, x in G.items()})


def test_preconditioned_inside_jit():
    """P diagonal: w⁺ = w − lr·P⁻¹g."""
    P = {name: 1.0 + x**2 for name, x in G.items()}
    tx = non_euclidean_gd(LR, Preconditioned(P))
    got, _ = jax.jit(tx.update)(device(G), tx.init(device(G)))
    close(got, {name: -LR * x / P[name] for name, x in G.items()})


def test_a_schedule_in_a_scan():
    """Normalized ℓ∞ steps of constant gradient 1: w falls by lr(0) + lr(1) + lr(2) + lr(3)."""
    tx = non_euclidean_gd(lambda count: 1.0 / (1.0 + count), "linf", normalized=True)
    w = {"w": jnp.zeros(2)}

    def step(carry, _):
        w, state = carry
        updates, state = tx.update({"w": jnp.ones(2)}, state)
        return (optax.apply_updates(w, updates), state), None

    (w, state), _ = jax.lax.scan(step, (w, tx.init(w)), None, length=4)
    close(w, {"w": -np.full(2, 1 + 1 / 2 + 1 / 3 + 1 / 4)})
    assert int(state.count) == 4


def test_a_traced_learning_rate():
    @jax.jit
    def step(lr):
        tx = non_euclidean_gd(lr, "linf", normalized=True)
        return tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}))[0]

    close(step(0.25), {"w": [-0.25, -0.25]})


def test_in_a_chain():
    """Clipping elementwise to ±0.5 first: sign descent does not see it, ‖g‖₁ does."""
    tx = optax.chain(optax.clip(0.5), non_euclidean_gd(LR, "linf"), optax.add_decayed_weights(-0.1))
    w = device({name: np.ones_like(x) for name, x in G.items()})
    got, _ = jax.jit(tx.update)(device(G), tx.init(w), w)
    dual = sum(np.abs(np.clip(x, -0.5, 0.5)).sum() for x in G.values())
    close(got, {name: -LR * dual * np.sign(x) - 0.1 for name, x in G.items()})


def test_masked_groups():
    mask = {"W": True, "b": False, "k": False}
    tx = optax.masked(non_euclidean_gd(LR, "spectral", normalized=True), mask)
    got, _ = tx.update(device(G), tx.init(device(G)))
    close(got, {**G, "W": -LR * polar(G["W"])})


def test_equinox_rows_first_and_leaves_that_are_not_arrays():
    """Muon's radius √max(1, rows/cols) of an (out, in) = (3, 2) weight is √(3/2)."""
    model = eqx.nn.MLP(2, 3, 4, 0, key=jax.random.key(0))
    g = np.random.default_rng(0).standard_normal((3, 2))
    grads = eqx.filter(model, eqx.is_inexact_array)
    grads = eqx.tree_at(lambda m: m.layers[0].weight, grads, jnp.asarray(g))
    tx = non_euclidean_gd(LR, "muon", normalized=True)
    got, _ = tx.update(grads, tx.init(grads))
    close({"w": got.layers[0].weight}, {"w": -LR * np.sqrt(1.5) * polar(g)})
    assert got.activation is None
    whole, _ = tx.update(model, tx.init(model))
    assert whole.activation is model.activation


def test_kernels_rows_last():
    """The same radius for a flax kernel (in, out) = (2, 3); (3, 2) would have radius 1."""
    g = np.random.default_rng(0).standard_normal((2, 3))
    tx = non_euclidean_gd(LR, "muon", normalized=True)
    got, _ = tx.update({"kernel": jnp.asarray(g)}, tx.init({}))
    close(got, {"kernel": -LR * np.sqrt(1.5) * polar(g)})


def test_integers_pass_through():
    g = {"w": jnp.asarray([3.0, -4.0]), "n": jnp.arange(3), "k": 7, "none": None}
    tx = non_euclidean_gd(LR, "linf", normalized=True)
    got, _ = tx.update(g, tx.init(g))
    np.testing.assert_array_equal(got["n"], [0, 1, 2])
    assert got["n"].dtype == g["n"].dtype
    assert (got["k"], got["none"]) == (7, None)
    close({"w": got["w"]}, {"w": [-LR, LR]})


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float16, marks=needs_float16), jnp.bfloat16])
def test_half_precision(dtype):
    """Computed in float32 from the rounded gradient, rounded once at the end: relative ε of the
    dtype (half an ulp is ε/2), entries below 1 in modulus times ‖g‖* < 32."""
    g = device(G, dtype)
    lmo, dual = FORMULAS["spectral"]
    rounded = {name: np.asarray(x, np.float64) for name, x in g.items()}
    tx = non_euclidean_gd(LR, "spectral")
    got, _ = tx.update(g, tx.init(g))
    assert {x.dtype for x in got.values()} == {jnp.dtype(dtype)}
    want = {name: -LR * dual(rounded) * x for name, x in lmo(rounded).items()}
    scale = LR * dual(rounded)
    eps = float(jnp.finfo(dtype).eps)
    for name, x in want.items():
        error = np.abs(np.asarray(got[name], np.float64) - x)
        # Below, float32's own 64·20·ε on the scale of the step.
        assert np.all(error <= eps * np.abs(x) + 64 * 20 * np.finfo(np.float32).eps * scale), name


def test_zero_gradient():
    zero = {name: np.zeros_like(x) for name, x in G.items()}
    for norm in FORMULAS:
        tx = non_euclidean_gd(LR, norm)
        got, _ = tx.update(device(zero), tx.init(device(zero)))
        close(got, zero)


def test_patterns_see_the_names_of_the_measurement():
    norm = ByParameter({r"^net\.0\.w$": Spectral(), ".*": Linf()})
    g = {"net": [{"w": jnp.asarray(G["W"])}, jnp.asarray(G["b"])]}
    tx = non_euclidean_gd(LR, norm, normalized=True)
    got, _ = tx.update(g, tx.init(g))
    flat = {"w": got["net"][0]["w"], "b": got["net"][1]}
    close(flat, {"w": -LR * polar(G["W"]), "b": -LR * np.sign(G["b"])})


@pytest.mark.parametrize("norm", FORMULAS)
def test_decrease_by_directional_smoothness(norm):
    """ΔL = −η(1 − ηD/2)‖g‖*² (arXiv 2603.05002). Losses of order one: ΔL to about 10·ε, hence
    D·‖s‖²/2 too; 1e-12 on ΔL of order 0.01 and more."""
    params = logistic_params()
    g = jax.grad(logistic)(params, X, Y)
    tx = non_euclidean_gd(0.05, norm)
    step, _ = tx.update(g, tx.init(params))
    D = geodiag.directional_smoothness(logistic, step, norm, params=params, data=(X, Y))
    moved = optax.apply_updates(params, step)
    change = float(logistic(moved, X, Y) - logistic(params, X, Y))
    host = {name: np.asarray(x) for name, x in g.items()}
    identity = -0.05 * (1 - 0.05 * D / 2) * FORMULAS[norm][1](host) ** 2
    assert change == pytest.approx(identity, rel=1e-10)
    assert change < 0


class WrongShapes(geodiag.Norm):
    def value(self, d):
        return sum((x * x).sum() for x in d.values()) ** 0.5

    def lmo(self, g):
        return {name: x.reshape((-1,)) for name, x in g.items()}


def test_wrong_lmo():
    tx = non_euclidean_gd(LR, WrongShapes())
    with pytest.raises(errors.NormError, match="wrong shape at 'W'"):
        tx.update(device(G), tx.init(device(G)))


@pytest.mark.parametrize(
    ("norm", "error"),
    [(L2, errors.ArgumentError), ("spectrall", errors.UnknownNorm), (3, errors.ArgumentError)],
)
def test_not_a_norm(norm, error):
    with pytest.raises(error):
        non_euclidean_gd(LR, norm)


def test_names_that_clash():
    g = {"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    tx = non_euclidean_gd(LR, "l2")
    with pytest.raises(errors.ParameterError, match="same name"):
        tx.update(g, tx.init(g))


def test_zero_gradients_move_nothing_in_any_norm():
    grads = {"W": jnp.zeros((3, 4)), "b": jnp.ones(3)}
    for norm in ("spectral", "muon", "nuclear", "linf", "l2"):
        transform = non_euclidean_gd(LR, norm, normalized=True)
        updates, _ = transform.update(grads, transform.init(grads))
        assert not updates["W"].any(), norm
