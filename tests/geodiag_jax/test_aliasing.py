"""Points that share what a step writes to: no S of the new point in the record of the old one.

The loss is Σ w⁴/12, whose Hessian is diag(w²): S is max w² in ℓ2.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import geodiag
import geodiag_jax
from geodiag import errors

OLD, NEW = np.array([1.0, -3.0]), np.array([0.5, -2.0])


class Model(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.asarray(OLD))


def quartic(params):
    return sum(jnp.sum(x**4) for x in jax.tree_util.tree_leaves(params)) / 12


def monitor():
    return geodiag_jax.Monitor(quartic, "l2", lr=0.1, every=1)


def is_refused(record, name):
    assert all(map(math.isnan, (record.sharpness, record.loss, record.directional_smoothness)))
    assert f"hold the same {name}" in record.note


def is_measured(record):
    assert record.sharpness == pytest.approx(9.0, rel=1e-3)  # its rtol
    assert "hold the same" not in record.note


STATES = {
    "state": lambda model: nnx.state(model, nnx.Param),
    "split": lambda model: nnx.split(model, nnx.Param, ...)[1],
    "nested": lambda model: {"model": nnx.state(model, nnx.Param), "other": (jnp.ones(2),)},
    "model": lambda model: {"w": model.w},
}


@pytest.mark.parametrize("name", STATES)
def test_states_of_a_live_model(name):
    for way in ("observe", "copied", "around"):
        model, watching = Model(), monitor()
        before = STATES[name](model)
        if way == "copied":
            before = jax.tree.map(jnp.copy, before)
        if way == "around":
            watching.before(0, before)
        model.w[...] = jnp.asarray(NEW)
        after = STATES[name](model)
        record = watching.after(after) if way == "around" else watching.observe(0, before, after)
        is_refused(record, "Param") if way == "observe" else is_measured(record)


def test_a_variable_beside_what_is_trained_by_value():
    model, watching = Model(), monitor()
    before = {"a": nnx.state(model), "b": jnp.ones(2)}
    model.w[...] = jnp.asarray(NEW)
    is_refused(watching.observe(0, before, {"a": nnx.state(model), "b": jnp.zeros(2)}), "Param")


def test_containers_written_to_in_place():
    for point, write, name in (
        ({"w": jnp.asarray(OLD)}, lambda p: p.update(w=jnp.asarray(NEW)), "dict"),
        ([jnp.asarray(OLD)], lambda p: p.__setitem__(0, jnp.asarray(NEW)), "list"),
        ({"a": {"w": jnp.asarray(OLD)}}, lambda p: p["a"].update(w=jnp.asarray(NEW)), "dict"),
    ):
        watching = monitor()
        write(point)
        is_refused(watching.observe(0, point, point), name)
        is_refused(watching.observe(1, point, point), name)


def test_numpy_memory_written_to_in_place():
    w = OLD.copy()
    before = {"w": w}
    w[:] = NEW
    is_refused(monitor().observe(0, before, {"w": w}), "ndarray")
    is_refused(monitor().observe(0, before, {"w": w[:]}), "ndarray")


def test_a_step_that_moves_nothing_is_measured():
    """Immutable arrays in containers of their own: the optimizer skipped the step."""
    w = jnp.asarray(OLD)
    record = monitor().observe(0, {"w": w}, {"w": w})
    is_measured(record)
    is_measured(monitor().observe(0, w, w))
    is_measured(monitor().observe(0, (w,), (w,)))


def test_what_is_not_trained_may_be_the_same():
    frozen = {"w": jnp.ones(2)}
    record = monitor().observe(
        0, {"a": frozen, "b": jnp.asarray(OLD)}, {"a": frozen, "b": jnp.asarray(NEW)}
    )
    is_measured(record)


def test_donated_buffers_are_named():
    watching = monitor()
    w = jnp.asarray(OLD)
    watching.observe(0, {"w": w + 0}, {"w": w})
    gone = w + 0
    gone.delete()
    record = watching.observe(1, {"w": gone}, {"w": w})
    assert math.isnan(record.sharpness)
    assert "deleted" in record.note


@pytest.mark.skipif(not hasattr(jax, "new_ref"), reason="no mutable arrays in this JAX")
def test_mutable_arrays_are_refused():
    for point in ({"w": jax.new_ref(jnp.ones(2))}, {"w": jax.new_ref(jnp.ones(2)), "v": OLD}):
        with pytest.raises(errors.ParameterError, match="'w' is a mutable array"):
            geodiag.sharpness(lambda p: jnp.sum(p["w"][...] ** 2), params=point)
