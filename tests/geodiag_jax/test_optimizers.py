"""The norm that is read from an optax state, against Adam by hand and the steps that optax takes.

A step is −lr·lmo(g) or −lr·P⁻¹m in this norm. Float64: 1e-9 unless said otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from geodiag import errors
from geodiag.norms import Muon, Spectral
from geodiag_jax import geometry
from geodiag_jax.optimizers.geometry import read_geometry
from geodiag_jax.pytree import read
from tests.geodiag_jax.optimizers import ADAPTIVE, LR, PARAMS, named, rng, train


def read_from(state, params=PARAMS, **arguments):
    """(bound norm, update)"""
    norm, update = geometry(state, params, **arguments)
    return norm.bind(read(params, arguments.get("where")).space), update


def assert_close(found, expected, rtol=1e-9):
    assert set(found) == set(expected)
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=rtol, atol=1e-13, err_msg=name)


def adam_by_hand(gradients, b1, b2, eps):
    """(P, m) of one array, by the formulas of Kingma and Ba."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        v_hat = v / (1 - b2**t)
    return (1 - b1**t) * (np.sqrt(v_hat) + eps), m


@pytest.mark.parametrize("b1", [0.9, 0.0])
def test_adam_by_hand(b1):
    gradients = [rng.standard_normal(4) for _ in range(5)]
    transform = optax.adam(LR, b1=b1, b2=0.95, eps=1e-3)
    params = {"w": jnp.zeros(4)}
    state = transform.init(params)
    for g in gradients:
        _, state = transform.update({"w": jnp.asarray(g)}, state)
    norm, update = read_from(state, params, lr=LR, hyperparams={"b1": b1, "b2": 0.95, "eps": 1e-3})
    p, _ = adam_by_hand(gradients, b1, 0.95, 1e-3)
    d = rng.standard_normal(4)
    assert float(norm.value({"w": jnp.asarray(d)})) == pytest.approx(np.sqrt(d @ (p * d)), rel=1e-9)
    assert_close(norm.metric({"w": jnp.asarray(d)}), {"w": p * d})
    assert_close(norm.inverse_metric({"w": jnp.asarray(d)}), {"w": d / p})
    assert float(update.threshold(None)) == pytest.approx(2 * (1 + b1) / (1 - b1) / LR, rel=1e-12)


def averages(state):
    """m of a state, wherever it is."""
    found = optax.tree_utils.tree_get_all_with_path(state, "mu")
    return {name: x for _, tree in found for name, x in named(tree).items()}


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_preconditioner_is_what_the_step_was_divided_by(name, steps):
    transform, hyperparams = ADAPTIVE[name]
    step = train(transform, steps)
    norm, update = read_from(step.state, lr=LR, hyperparams=hyperparams)
    assert (update.lr, update.ema, update.unknown) == (LR, True, "")
    divided = norm.inverse_metric(averages(step.state))
    assert_close(step.move, {k: -LR * x for k, x in divided.items()}, rtol=1e-8)


@pytest.mark.parametrize(
    ("transform", "hyperparams"),
    [
        (optax.rmsprop(LR), {}),
        (optax.rmsprop(LR, centered=True, eps=1e-2), {"eps": 1e-2}),
        (optax.rmsprop(LR, eps_in_sqrt=False, eps=0.1), {"eps": 0.1, "eps_in_sqrt": False}),
    ],
)
def test_rmsprop_divides_the_gradient(transform, hyperparams):
    step = train(transform, 3)
    norm, update = read_from(step.state, lr=LR, hyperparams=hyperparams)
    assert_close(
        step.move, {k: -LR * x for k, x in norm.inverse_metric(step.gradient).items()}, rtol=1e-8
    )
    assert float(update.threshold(None)) == pytest.approx(2 / LR)


def test_momentum_of_rmsprop_must_be_said():
    state = train(optax.rmsprop(LR, momentum=0.5)).state
    assert "momentum is not in the optimizer's state" in geometry(state, PARAMS, lr=LR)[1].unknown
    _, update = geometry(state, PARAMS, lr=LR, hyperparams={"momentum": 0.5})
    assert float(update.threshold(None)) == pytest.approx(2 * 1.5 / LR)
    injected = train(optax.inject_hyperparams(optax.rmsprop)(LR, momentum=0.5)).state
    assert geometry(injected, PARAMS)[1].momentum == 0.5


def test_learning_rates_of_groups_are_part_of_the_norm():
    transform = optax.partition(
        {
            "one": optax.inject_hyperparams(optax.adam)(LR),
            "two": optax.inject_hyperparams(optax.adam)(5 * LR),
        },
        {"a": {"kernel": "one", "bias": "two"}, "b": {"kernel": "two"}},
    )
    step = train(transform, 2)
    norm, update = read_from(step.state)
    assert update.lr == pytest.approx(5 * LR)  # of a.bias, the first
    divided = norm.inverse_metric(averages(step.state))
    assert_close(step.move, {k: -5 * LR * x for k, x in divided.items()}, rtol=1e-7)


class TestRule:
    def rule(self, transform, **arguments):
        return geometry(train(transform).state, PARAMS, **arguments)[1]

    def test_everything_injected(self):
        transform = optax.inject_hyperparams(optax.adamw)
        update = self.rule(transform(optax.linear_schedule(LR, 0.0, 10), b1=0.5, weight_decay=2.0))
        assert (update.lr, update.momentum) == pytest.approx((LR, 0.5))
        # FORMULAS: EMA momentum, and γ(1 + β₁)/(1 − β₁) less for decoupled decay.
        assert float(update.threshold(None)) == pytest.approx(3 * (2 / LR - 2.0))

    def test_what_is_said_comes_first(self):
        transform = optax.inject_hyperparams(optax.adamw)(LR, b1=0.5)
        update = self.rule(transform, lr=0.1, hyperparams={"b1": 0.0, "weight_decay": 0.0})
        assert float(update.threshold(None)) == pytest.approx(20.0)

    def test_nesterov(self):
        update = self.rule(optax.nadam(LR), lr=LR, hyperparams={"nesterov": True})
        assert float(update.threshold(None)) == pytest.approx(3.8 / (0.1 * 2.8 * LR))

    def test_without_a_learning_rate(self):
        update = self.rule(optax.adam(LR))
        assert "the learning rate is not in the optimizer's state" in update.unknown
        assert np.isnan(update.lr)
        assert "not positive" in self.rule(optax.inject_hyperparams(optax.adam)(0.0)).unknown

    def test_decay_of_rmsprop(self):
        """w⁺ = w − η(λ/P + γ)w turns the sign of w where λ/P = 2/η − γ."""
        update = self.rule(optax.rmsprop(LR), lr=LR, hyperparams={"weight_decay": 3.0})
        assert float(update.threshold(None)) == pytest.approx(2 / LR - 3.0)

    def test_groups_that_differ(self):
        parts = {
            k: optax.inject_hyperparams(optax.adam)(LR, b1=b) for k, b in {"a": 0.9, "b": 0}.items()
        }
        update = self.rule(optax.partition(parts, {"a": "a", "b": "b"}))
        # Each has its own weight in the norm; the threshold is the first one's.
        assert float(update.threshold(None)) == pytest.approx(2 / LR * 19)


# A polynomial that converges to U Vᵀ, to rounding.
EXACT = {"ns_coeffs": 25 * ((1.875, -1.25, 0.375),), "ns_steps": 25, "beta": 0.0, "nesterov": False}
MATRICES = {"tall": jnp.asarray(rng.standard_normal((6, 3))),
            "wide": {"kernel": jnp.asarray(rng.standard_normal((2, 5)))},
            "square": jnp.asarray(rng.standard_normal((4, 4)))}  # fmt: skip


class Linear(NamedTuple):
    """Equinox's layout, (out, in) under the name of weight, which optax does not know of."""

    weight: jax.Array


@pytest.mark.parametrize("rms", [None, 0.2])
@pytest.mark.parametrize(
    "params", [MATRICES, [Linear(MATRICES["tall"]), Linear(MATRICES["square"])]]
)
def test_muons_radii_are_those_of_its_updates(rms, params):
    transform = optax.contrib.muon(LR, **EXACT, consistent_rms=rms)
    step = train(transform, params=params)
    arguments = {"lr": LR, "hyperparams": {"beta": 0.0, "consistent_rms": rms}}
    norm, update = read_from(step.state, params, **arguments)
    for name, x in step.move.items():  # each alone has norm one where its length is its radius
        alone = {k: y * (k == name) / LR for k, y in step.move.items()}
        radius = np.linalg.norm(np.asarray(x), 2) / LR
        assert radius > (1.0 if rms is None else 0.2) * (1 - 1e-6)
        assert float(norm.value(alone)) == pytest.approx(1.0, rel=1e-6)
    assert_close(step.move, {k: -LR * d for k, d in norm.lmo(step.gradient).items()}, rtol=1e-5)
    dual = float(norm.dual(step.gradient))
    assert float(update.threshold(dual)) == pytest.approx(2 * dual / LR)


def test_muon_on_flax_kernels_is_the_registered_norm():
    step = train(optax.contrib.muon(LR), params=MATRICES)
    found = read_geometry(step.state, read(MATRICES, None).space, LR, {"beta": 0.0})
    assert found.update(Muon()).unknown == ""
    assert "is not the geometry of the optimizer" in found.update(Spectral()).unknown


def test_muon_and_its_adam():
    transform = optax.inject_hyperparams(optax.contrib.muon)
    step = train(transform(LR, adam_b1=0.5, beta=0.0, nesterov=False))
    with pytest.raises(errors.ArgumentError, match="two geometries") as e:
        geometry(step.state, PARAMS)
    assert "where=" in str(e.value)
    assert geometry(step.state, PARAMS, where="kernel")[1].normalized
    assert geometry(step.state, PARAMS, where="bias")[1].nesterov  # by default
    norm, update = read_from(step.state, where="bias", hyperparams={"nesterov": False})
    assert (update.momentum, update.ema, update.nesterov) == (0.5, True, False)
    moved = norm.inverse_metric({"a.bias": averages(step.state)["a.bias"]})
    assert_close({"a.bias": step.move["a.bias"]}, {"a.bias": -LR * moved["a.bias"]}, rtol=1e-6)


def test_muon_with_momentum_has_no_threshold():
    _, update = geometry(train(optax.contrib.muon(LR)).state, PARAMS, lr=LR, where="kernel")
    assert np.isnan(update.threshold(1.0))


def test_lion():
    step = train(optax.lion(LR, b1=0.0, weight_decay=0.0))
    norm, update = read_from(step.state, lr=LR, hyperparams={"b1": 0.0})
    assert_close(step.move, {k: -LR * d for k, d in norm.lmo(step.gradient).items()})
    assert float(update.threshold(3.0)) == pytest.approx(6 / LR)
    parts = {k: optax.inject_hyperparams(optax.lion)(r, b1=0.0, weight_decay=0.0)
             for k, r in {"a": LR, "b": 3 * LR}.items()}  # fmt: skip
    step = train(optax.partition(parts, {"a": "a", "b": "b"}))
    norm, update = read_from(step.state)
    assert_close(step.move, {k: -update.lr * d for k, d in norm.lmo(step.gradient).items()})


def compared(transform, factor=1.0, steps=4, **told):
    """What the last step, multiplied with a factor, says of the rule that is read."""
    step = train(transform, steps)
    there = {name: step.here[name] + factor * x for name, x in step.move.items()}
    geometry = read_geometry(step.state, read(PARAMS, None).space, LR, told, step.before)
    return geometry, geometry.compare(step.here, there, step.gradient)


@pytest.mark.parametrize("told", [{}, {"b1": 0.95, "b2": 0.98}])
def test_lions_step_is_that_of_its_averages(told):
    """Of the m before the step and the gradient; its b2 is 0.99 unless it is said."""
    lion = optax.lion(LR, weight_decay=1.0, **told)
    assert compared(lion, **told, weight_decay=1.0)[1].unknown == ""
    for factor, decay in ((0.5, 1.0), (1.0, 0.0)):
        _, said = compared(lion, factor, **told, weight_decay=decay)
        assert "the step differs from what state" in said.unknown


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_is_read_from_its_trace(nesterov):
    sgd = optax.sgd(LR, 0.7, nesterov=nesterov)
    found, said = compared(sgd, momentum=0.7, nesterov=nesterov)
    k = 3.4 / 2.4 if nesterov else 3.4
    assert repr(found.norm()) == "L2()"
    assert float(found.update().threshold(None)) == pytest.approx(k / LR)
    assert (said.unknown, said.caveat) == ("", "")
    assert "differs" in compared(sgd, momentum=0.7, nesterov=not nesterov)[1].unknown
    decayed = optax.chain(optax.add_decayed_weights(20.0), sgd)
    told = {"momentum": 0.7, "nesterov": nesterov}
    assert "plus 20 times the weights" in compared(decayed, steps=1, **told)[1].unknown
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), sgd)
    assert compared(clipped, steps=1, **told)[1].scale < 0.1
    found, _ = compared(sgd)
    assert "momentum is not in the optimizer's state" in found.update().unknown
    injected = optax.inject_hyperparams(optax.sgd)(LR, momentum=0.7)
    assert geometry(train(injected).state, PARAMS)[1].momentum == pytest.approx(0.7)
