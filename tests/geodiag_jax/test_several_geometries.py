"""Muon beside Adam, as optax.contrib.muon is for a whole model, and as a partition of one's own."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
import pytest

import geodiag_jax

K = jax.random.split(jax.random.key(0), 4)
PARAMS = {"w1": jax.random.normal(K[0], (4, 5)) / 2, "b": jnp.zeros(5),
          "w2": jax.random.normal(K[1], (5, 2)) / 2}  # fmt: skip
X, Y = jax.random.normal(K[2], (20, 4)), jax.random.normal(K[3], (20, 2))


def loss(p, x, y):
    return jnp.mean((jnp.tanh(x @ p["w1"] + p["b"]) @ p["w2"] - y) ** 2)


def trained(transform, scale=1.0, **options):
    p, state = PARAMS, transform.init(PARAMS)
    monitor = geodiag_jax.Monitor(loss, data=(X, Y), every=1, lr=0.02, **options)
    for t in range(3):
        updates, state = transform.update(jax.grad(loss)(p, X, Y), state, p)
        q = optax.apply_updates(p, jax.tree.map(lambda u: scale * u, updates))
        monitor.observe(t, p, q, state)
        p = q
    return monitor.records


def partition():
    rules = {"m": optax.contrib.muon(0.02), "a": optax.adamw(0.02, weight_decay=0.0)}
    return optax.partition(rules, {"w1": "m", "w2": "m", "b": "a"})


@pytest.mark.parametrize(
    ("make", "told", "edge"),
    [
        (lambda: optax.contrib.muon(0.02), {}, 2 * 19 / 2.8 / 0.02),  # its Adam is Nesterov's
        (partition, {"nesterov": True, "adam_nesterov": False}, 2 * 19 / 0.02),
    ],
    ids=["contrib.muon", "partition"],
)
def test_parts_and_no_ratio_of_one(make, told, edge):
    records = trained(make(), hyperparams=told)
    for r in records:
        assert math.isnan(r.sharpness)
        assert math.isnan(r.ratio)
        assert 0 < r.realized_edge < 1
        assert r.threshold_adam == pytest.approx(edge)
        assert r.ratio_adam == pytest.approx(r.sharpness_adam / edge)
        assert "no threshold: the step has two geometries, which no norm joins" in r.note
        assert "muon: no threshold: none established for normalized updates with" in r.note
        assert "the step" not in r.note.replace("the step has two", "").replace(
            "along the step", ""
        )


def test_a_longer_step_contradicts_both():
    for r in trained(optax.contrib.muon(0.02), scale=2.0):
        for part in ("muon", "adam"):
            assert f"{part}: no threshold: the step differs from what state" in r.note
