"""Where a step moves more than is measured, D is absent, and the record says why.

The truth about D is the loss and its gradient in float64, by ``jax.grad`` alone.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import geodiag_jax
from geodiag import errors

X, Y = np.random.default_rng(0).standard_normal((2, 16, 3))


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)


def params():
    rng = np.random.default_rng(1)
    return {"a": jnp.asarray(rng.standard_normal((3, 3))), "b": jnp.asarray(np.eye(3))}


def moved(p, *names, lr=0.1):
    g = jax.grad(loss)(p, X, Y)
    return {n: x - lr * g[n] if n in names else x for n, x in p.items()}


def observed(before, after, **arguments):
    monitor = geodiag_jax.Monitor(loss, "l2", data=(X, Y), lr=0.1, every=1, **arguments)
    return monitor.observe(0, before, after)


def test_a_step_of_more_than_is_measured_has_no_d():
    p = params()
    record = observed(p, moved(p, "a", "b"), where="a")
    assert math.isfinite(record.sharpness)
    assert math.isnan(record.directional_smoothness)
    assert math.isnan(record.curvature)
    assert math.isnan(record.realized_edge)
    assert "no D, no ζ: the step also moved 'b', which is not measured" in record.note


def test_also_where_the_buffers_are_donated():
    p = params()
    monitor = geodiag_jax.Monitor(loss, "l2", data=(X, Y), lr=0.1, every=1, where="a")
    after = moved(p, "a", "b")
    monitor.before(0, p)
    for x in p.values():
        x.delete()
    assert "no D, no ζ: the step also moved 'b'" in monitor.after(after).note


def test_a_step_of_what_is_measured_has_its_d():
    p = params()
    new = moved(p, "a")
    record = observed(p, new, where="a")
    g, s = jax.grad(loss)(p, X, Y)["a"], new["a"] - p["a"]
    rise = float(loss(new, X, Y) - loss(p, X, Y) - jnp.sum(g * s))
    expected = 2 * rise / float(jnp.sum(s * s))
    assert record.directional_smoothness == pytest.approx(expected, rel=1e-9)
    assert "no D" not in record.note


def test_the_state_of_flax_is_no_part_of_a_step():
    def variables(p, mean):
        return {"params": p, "batch_stats": {"mean": jnp.full(3, mean)}}

    def stateful(v, x, y):
        return loss(v["params"], x, y)

    p = params()
    monitor = geodiag_jax.Monitor(stateful, "l2", data=(X, Y), lr=0.1, every=1, where=r"^params\.")
    record = monitor.observe(0, variables(p, 0.0), variables(moved(p, "a", "b"), 1.0))
    assert math.isfinite(record.directional_smoothness)
    assert "no D" not in record.note


MASKS = {
    "partition": lambda: optax.partition(
        {"train": optax.adam(1e-2), "freeze": optax.set_to_zero()}, {"a": "train", "b": "freeze"}
    ),
    "masked": lambda: optax.chain(
        optax.masked(optax.adam(1e-2), {"a": True, "b": False}),
        optax.masked(optax.set_to_zero(), {"a": False, "b": True}),
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_the_optimizer_holds_still_is_refused_by_its_name(name):
    p, transform = params(), MASKS[name]()
    updates, state = transform.update(jax.grad(loss)(p, X, Y), transform.init(p), p)
    new = optax.apply_updates(p, updates)
    monitor = geodiag_jax.Monitor(loss, data=(X, Y), lr=1e-2, every=1)
    with pytest.raises(errors.ArgumentError, match="not that of 'b'"):
        monitor.observe(0, p, new, state)
    monitor = geodiag_jax.Monitor(loss, data=(X, Y), lr=1e-2, every=1, where="a")
    record = monitor.observe(0, p, new, state)
    assert math.isfinite(record.ratio)
    assert math.isfinite(record.directional_smoothness)


def test_parameters_frozen_in_mid_run_are_named():
    p, whole = params(), optax.adam(1e-2)
    monitor = geodiag_jax.Monitor(loss, data=(X, Y), lr=1e-2, every=1)
    for at, transform in enumerate((whole, MASKS["partition"]())):
        updates, state = transform.update(jax.grad(loss)(p, X, Y), transform.init(p), p)
        new = optax.apply_updates(p, updates)
        record = monitor.observe(at, p, new, state)
    assert math.isnan(record.sharpness)
    assert "not that of 'b'" in record.note
