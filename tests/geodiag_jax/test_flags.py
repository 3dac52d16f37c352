"""Settings of jax.config that stop a program: estimates are as without them.

The loss is quadratic with Hessian diag(a) on each of two tensors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
import geodiag_jax

A = np.array([3.0, 1.0, 2.0])
FLAGS = {
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_transfer_guard": "disallow",
}


def loss(params, a):
    return sum(jnp.sum(a[None, :] * w * w) for w in (params["v"], params["w"])) / jnp.float32(2)


@pytest.fixture(params=FLAGS)
def flag(request):
    before = getattr(jax.config, request.param)
    jax.config.update(request.param, FLAGS[request.param])
    yield request.param
    jax.config.update(request.param, before)


@pytest.fixture
def given():
    ones = np.ones((1, 3), np.float32)
    params = jax.device_put({"v": ones, "w": 2 * ones})
    step = jax.device_put({"v": 0.1 * ones, "w": 0.2 * ones})
    return params, jax.device_put(A.astype(np.float32)), step


@pytest.mark.parametrize("norm", ["l2", "linf", "spectral"])
def test_sharpness(given, flag, norm):
    params, a, _ = given
    result = geodiag.sharpness(loss, norm, params=params, data=(a,))
    again = geodiag.sharpness(loss, norm, params=params, data=(a,), start=result)
    want = {"l2": 3.0, "linf": 2 * A.sum(), "spectral": 6.0}[norm]
    assert [result.value, again.value] == pytest.approx([want, want], rel=1e-3)


def test_a_step_and_a_monitor(given, flag):
    params, a, step = given
    found = geodiag.directional_smoothness(loss, step, params=params, data=(a,))
    assert float(found) == pytest.approx(A.mean(), rel=1e-3)
    moved = jax.jit(lambda w, s: jax.tree.map(jnp.add, w, s))(params, step)
    monitor = geodiag_jax.Monitor(loss, "l2", data=(a,), lr=0.1, every=1)
    record = monitor.observe(0, params, moved)
    assert record.sharpness == pytest.approx(3.0, rel=1e-3)
    assert record.directional_smoothness == pytest.approx(A.mean(), rel=1e-3)
    assert record.curvature == pytest.approx(A.mean(), rel=1e-3)


def test_a_tracker(given, flag):
    if flag == "jax_transfer_guard":
        pytest.skip("constants of a user's own jit are the user's")
    params, a, _ = given
    tracker = geodiag_jax.tracker(loss)
    found, _ = jax.jit(tracker.measure)(tracker.init(params), params, a)
    assert float(found.value) == pytest.approx(3.0, rel=1e-3)


def test_the_flags_are_as_they_were(given, flag):
    params, a, _ = given
    geodiag.sharpness(loss, params=params, data=(a,))
    assert getattr(jax.config, flag) == FLAGS[flag]
