"""Python floats among the parameters, which jax.grad and optax take for arrays of shape ().

The loss is the mean over rows of (s t + c − y)², t = tanh(x·w). With r = s t + c − y its Hessian is
2/n Σ (J Jᵀ + r ∇²(s t)), with J = (1, t, s t' x) in the order of the names (offset, scale, w), and
∇²(s t) zero but for t' x between scale and w, and s t'' x xᵀ.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import geodiag
import geodiag_jax
from tests.geodiag_jax.models import Counted

equinox = pytest.importorskip("equinox")

X = np.random.default_rng(1).standard_normal((40, 3))
Y = np.sin(3 * X[:, 0])
W = np.array([0.3, -0.2, 0.5])
DATA = (X, Y)


def loss(p, x, y):
    return jnp.mean((p["scale"] * jnp.tanh(x @ p["w"]) + p["offset"] - y) ** 2)


def params(scale=2.0, offset=0.1):
    return {"w": jnp.asarray(W), "scale": scale, "offset": offset}


def hessian(scale=2.0, offset=0.1, w=W):
    t = np.tanh(X @ w)
    first, second = 1 - t**2, -2 * t * (1 - t**2)
    r = scale * t + offset - Y
    jacobian = np.column_stack([np.ones_like(t), t, (scale * first)[:, None] * X])
    found = jacobian.T @ jacobian
    found[1, 2:] += (r * first) @ X
    found[2:, 1] += (r * first) @ X
    found[2:, 2:] += (X.T * (r * scale * second)) @ X
    return 2 / len(X) * found


def top(h):
    return float(np.linalg.eigvalsh(h)[-1])


@pytest.mark.parametrize("kind", [float, np.float64, np.asarray, jnp.asarray])
def test_a_float_is_a_parameter(kind):
    result = geodiag.sharpness(loss, params=params(kind(2.0)), data=DATA)
    assert result.value == pytest.approx(top(hessian()), rel=1e-10)
    assert list(result.direction) == ["offset", "scale", "w"]
    assert result.notes == ()


def test_where_chooses_among_floats():
    for where, kept in ((r"scale|offset", [0, 1]), ("w", [2, 3, 4]), (r"scale|w", [1, 2, 3, 4])):
        result = geodiag.sharpness(loss, params=params(), data=DATA, where=where)
        assert result.value == pytest.approx(top(hessian()[np.ix_(kept, kept)]), rel=1e-10)
    seen = {}
    geodiag.problem(
        loss, params=params(), data=DATA, where=lambda n, x: seen.update({n: x.shape}) or True
    )
    assert seen == {"offset": (), "scale": (), "w": (3,)}


def test_integers_and_bools_are_held_fixed():
    result = geodiag.sharpness(loss, params=params(scale=2), data=DATA)
    kept = [0, 2, 3, 4]
    assert result.value == pytest.approx(top(hessian()[np.ix_(kept, kept)]), rel=1e-10)
    assert list(result.direction) == ["offset", "w"]


def test_other_values_trace_nothing():
    counted = Counted(loss)
    geodiag.sharpness(counted, params=params(), data=DATA)
    before = counted.calls
    for scale in (1.0, 3.0, 0.5):
        result = geodiag.sharpness(counted, params=params(scale), data=DATA)
        assert result.value == pytest.approx(top(hessian(scale)), rel=1e-10)
    assert counted.calls == before


def test_the_structure_and_the_types_reach_the_loss():
    """Weakly typed, as a Python float is: it does not widen bfloat16."""

    def typed(p):
        half, scale = p["nested"][0], p["nested"][1]["scale"]
        assert (scale.shape, scale.weak_type) == ((), True)
        assert (scale * half).dtype == jnp.bfloat16
        assert type(p["k"]) is int
        return jnp.sum((scale * half).astype(jnp.float32)) ** 2 * p["k"]

    point = {"nested": [jnp.ones(2, jnp.bfloat16), {"scale": 1.5}], "k": 3}
    oracle = geodiag.problem(typed, params=point).at()
    assert oracle.names == ("nested.0", "nested.1.scale")
    assert oracle.point()["nested.0"].dtype == jnp.float32  # the float does not widen it


@pytest.mark.parametrize("kind", [float, np.float64, jnp.asarray])
def test_a_step_of_floats(kind):
    step = {"w": -0.1 * W, "scale": kind(0.05), "offset": kind(-0.02)}
    s = np.concatenate([[-0.02, 0.05], -0.1 * W])
    found = geodiag.directional_smoothness(loss, step, params=params(), data=DATA, kind="curvature")
    assert float(found) == pytest.approx(s @ hessian() @ s / (s @ s), rel=1e-9)


def test_the_monitor_follows_floats_that_become_arrays():
    """optax makes arrays of them with the first step."""
    at, optimizer = params(), optax.adam(1e-2)
    state = optimizer.init(at)
    monitor = geodiag_jax.Monitor(loss, "l2", data=DATA, lr=1e-2, every=1)
    adam = geodiag_jax.Monitor(loss, data=DATA, lr=1e-2, every=1)
    for step in range(3):
        updates, state = optimizer.update(jax.grad(loss)(at, *DATA), state, at)
        new = optax.apply_updates(at, updates)
        record = monitor.observe(step, at, new)
        want = hessian(float(at["scale"]), float(at["offset"]), np.asarray(at["w"]))
        s = np.concatenate([np.ravel(new[k]) - np.ravel(at[k]) for k in ("offset", "scale", "w")])
        assert record.sharpness == pytest.approx(top(want), rel=1e-3)  # its rtol
        assert record.curvature == pytest.approx(s @ want @ s / (s @ s), rel=1e-6)
        assert np.isfinite(adam.observe(step, at, new, state).sharpness)
        at = new


def test_floats_alone():
    result = geodiag.sharpness(lambda p: p["a"] * p["b"] ** 2, params={"a": 1.0, "b": 2.0})
    assert result.value == pytest.approx(1 + np.sqrt(1 + 16))  # of [[0, 4], [4, 2]]
    bare = geodiag.sharpness(lambda a: 3 * a**2, params=1.0)
    assert bare.value == pytest.approx(6.0)


def test_a_tracker_of_floats():
    tracker = geodiag_jax.tracker(loss)
    found, _ = jax.jit(tracker.measure)(tracker.init(params()), params(), *DATA)
    assert float(found.value) == pytest.approx(top(hessian()), rel=1e-6)


class Scaled(equinox.Module):
    weight: jax.Array
    rate: float

    def __call__(self, x):
        return self.rate * x @ self.weight


def test_floats_of_equinox_modules_are_options():
    """equinox.filter_grad leaves them out, as the rate of a dropout."""
    module = Scaled(jnp.asarray(W), 2.0)
    problem = geodiag.problem(lambda m, x, y: jnp.mean((m(x) - y) ** 2), params=module, data=DATA)
    assert problem.space.names == ("weight",)
    both = geodiag.problem(
        lambda p, x, y: jnp.mean((p[1] * p[0](x) - y) ** 2), params=(module, 1.0), data=DATA
    )
    assert both.space.names == ("0.weight", "1")
