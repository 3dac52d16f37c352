"""Which steps a record gives a threshold for, in loops with real optax optimizers.

What each optimizer does is known from how it is built, so it is known which are told rightly.
"""

from __future__ import annotations

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import geodiag_jax
from tests.geodiag_jax.optimizers import LR, PARAMS, gradient_of, loss

MATRICES = {"w": PARAMS["a"]["kernel"]}
SCHEDULE = optax.linear_schedule(LR, LR / 10, 12)  # asked with the number of applied updates


def run(transform, steps=3, start=0, params=PARAMS, gradient=gradient_of, state=True, **options):
    """The records of a loop; observed from the step ``start`` on."""
    at, update = transform.init(params), jax.jit(transform.update)
    monitor = geodiag_jax.Monitor(loss, **{"every": 1, "max_hvps": 8, "lr": LR} | options)
    for step in range(steps):
        updates, at = update(gradient(params), at, params)
        new = optax.apply_updates(params, updates)
        if step >= start:
            monitor.observe(step, params, new, at if state else None)
        params = new
    return monitor.records


def finite(records):
    return [math.isfinite(r.threshold) and math.isfinite(r.ratio) for r in records]


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (optax.adam(LR), {}),
        pytest.param(
            optax.nadam(LR), {"hyperparams": {"nesterov": True}}, marks=pytest.mark.slow
        ),
        (optax.adamw(LR, weight_decay=0.3), {"hyperparams": {"weight_decay": 0.3}}),
        pytest.param(optax.amsgrad(LR), {}, marks=pytest.mark.slow),
        pytest.param(optax.rmsprop(LR), {}, marks=pytest.mark.slow),
        (optax.rmsprop(LR, momentum=0.5), {"hyperparams": {"momentum": 0.5}}),
        (optax.chain(optax.clip_by_global_norm(1e9), optax.adam(LR)), {}),
        (optax.chain(optax.scale(0.1), optax.lion(LR, b1=0.0, weight_decay=0.0)),
         {"hyperparams": {"b1": 0.0}}),
        (optax.sgd(LR / 100), {"lr": LR / 100, "norm": "l2", "state": False}),
        (optax.sgd(LR / 100, 0.9), {"lr": LR / 100, "hyperparams": {"momentum": 0.9}}),
    ],
)  # fmt: skip
def test_told_rightly(transform, told):
    records = run(transform, **told)
    # Of a momentum without a step before it, nothing shows the gradient.
    first = 1 if "momentum" in told.get("hyperparams", {}) else 0
    assert all(finite(records)[first:])
    assert not any(r.note for r in records[first:])


@pytest.mark.parametrize(
    ("transform", "told", "why"),
    [
        (optax.chain(optax.clip(0.05), optax.adam(LR)), {}, "entries clipped at 0.05"),
        (optax.chain(optax.add_decayed_weights(2.0), optax.adam(LR)), {}, "plus 2 times the"),
        (optax.chain(optax.clip_by_block_rms(0.1), optax.adam(LR)), {}, "by tensor"),
        (optax.nadam(LR), {}, "nesterov=True"),
        (optax.chain(optax.rmsprop(LR), optax.scale(0.5)), {}, "the step is 0.5 times"),
        (optax.rmsprop(LR, momentum=0.5, nesterov=True),
         {"hyperparams": {"momentum": 0.5}}, "the step differs"),
        (optax.sgd(LR / 300), {"lr": LR / 100, "norm": "l2", "state": False}, "0.3333 times what"),
        (optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(LR)),
         {"norm": "l2", "state": False}, "times what lr and the gradient predict"),
        (optax.chain(optax.lion(LR, b1=0.0, weight_decay=0.0), optax.scale(2.0)),
         {"hyperparams": {"b1": 0.0}}, "the step differs from what state"),
        (optax.sgd(LR / 100, 0.9, nesterov=True),
         {"lr": LR / 100, "hyperparams": {"momentum": 0.9}}, "the step differs from what state"),
    ],
)  # fmt: skip
def test_told_wrongly(transform, told, why):
    records = run(transform, **told)
    assert not any(finite(records)[1:])
    assert all(why in r.note for r in records[1:])
    assert all(math.isfinite(r.sharpness) for r in records[1:])


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (optax.chain(optax.clip_by_global_norm(0.1), optax.adam(LR)), {}),
        (optax.chain(optax.scale(0.1), optax.adam(LR)), {}),
        (optax.chain(optax.scale(0.1), optax.rmsprop(LR, momentum=0.5)),
         {"hyperparams": {"momentum": 0.5}}),
    ],
)  # fmt: skip
def test_a_factor_before_the_optimizer_divides_the_threshold(transform, told):
    records = run(transform, **told)
    assert all(finite(records)[1:])
    assert any("times the measured loss's gradient" in r.note for r in records)


@pytest.mark.parametrize(
    "built", [{"adaptive": True}, {"consistent_rms": 0.2}, {"weight_decay": 5.0}]
)
def test_muon_told_wrongly(built):
    options = {"beta": 0.0, "nesterov": False}
    told = {"params": MATRICES, "hyperparams": {"beta": 0.0}}
    assert all(finite(run(optax.contrib.muon(LR, **options), **told)))
    records = run(optax.contrib.muon(LR, **options, **built), **told)
    assert not any(finite(records))
    assert all("the step differs from what" in r.note for r in records)


def test_a_loop_that_is_joined_late():
    """The gradient of its first step is not known: from then on it is."""
    records = run(optax.adam(LR), steps=5, start=2)
    assert finite(records) == [False, True, True]
    assert "call observe at every step" in records[0].note
    sparse = run(optax.adam(LR), steps=9, every=4)
    assert finite(sparse) == [True] * 3
    assert not any(r.note for r in sparse)


def test_a_loop_with_a_budget(monkeypatch):
    """A measurement may come due at any step, so the state before it is known at all of them."""
    clock = [0.0]

    def now():
        clock[0] += 0.01
        return clock[0]

    def gradient(params):
        clock[0] += 0.1
        return gradient_of(params)

    monkeypatch.setattr(time, "perf_counter", now)
    records = run(optax.adam(LR), steps=20, gradient=gradient, budget=0.2)
    assert len(records) > 2
    assert finite(records) == [True] * len(records)


def test_a_function_that_says_when_is_asked_once_a_step():
    asked = []
    records = run(optax.adam(LR), steps=5, every=lambda step: asked.append(step) or step % 2 == 1)
    assert asked == [0, 1, 2, 3, 4]
    assert finite(records) == [True, True]


def test_a_donated_state():
    """The one before the step is gone: there is no threshold, but S is measured."""
    transform, params = optax.adam(LR), PARAMS
    state, update = transform.init(params), jax.jit(transform.update, donate_argnums=1)
    monitor = geodiag_jax.Monitor(loss, lr=LR, every=2, max_hvps=8)
    for step in range(5):
        updates, state = update(gradient_of(params), state, params)
        new = optax.apply_updates(params, updates)
        monitor.observe(step, params, new, state)
        params = new
    assert all(math.isfinite(r.sharpness) for r in monitor.records)
    assert finite(monitor.records) == [True, False, False]
    assert "donates" in monitor.records[1].note


def test_what_cannot_be_read_stops_no_run():
    """Deleted parameters, and a state that is no pytree."""
    monitor = geodiag_jax.Monitor(loss, "l2", lr=LR, every=1, max_hvps=8)
    monitor.observe(0, PARAMS, jax.tree_util.tree_map(jnp.sin, PARAMS))
    gone = jax.tree_util.tree_map(jnp.copy, PARAMS)
    for x in jax.tree_util.tree_leaves(gone):
        x.delete()
    deleted = monitor.observe(1, gone, PARAMS)
    assert "no threshold: the step was not compared" in deleted.note
    unordered = monitor.observe(2, PARAMS, gradient_of(PARAMS), {1: 1, "a": 2})
    assert math.isfinite(unordered.sharpness)
    assert "no threshold" in unordered.note


def test_another_batch_is_said_once():
    def other(params):
        g = gradient_of(params)
        noise = jax.tree_util.tree_map(lambda x: jnp.sin(1e4 * x) * jnp.linalg.norm(x), g)
        return jax.tree_util.tree_map(jnp.add, g, noise)

    records = run(optax.adam(LR), gradient=other)
    assert all(finite(records))
    assert "not that of the measured loss" in records[0].note
    assert records[1].note == records[2].note == ""


@pytest.mark.parametrize("rate", [SCHEDULE, lambda step: SCHEDULE(step // 3)])
def test_the_count_of_a_schedule_under_accumulation(rate):
    """By the optimizer's count, or by the loop's where that is what the function takes."""
    records = run(optax.MultiSteps(optax.adam(SCHEDULE), 3), steps=9, lr=rate)
    assert finite(records) == [False, False, True] * 3
    for r in records[2::3]:
        assert r.lr == pytest.approx(float(SCHEDULE(r.step // 3)))
        assert r.threshold == pytest.approx(38 / r.lr)
    assert all("did not apply" in r.note for i, r in enumerate(records) if i % 3 < 2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.chain(optax.zero_nans(), tx),
        lambda tx: optax.masked(tx, {"a": True, "b": True}),
        lambda tx: optax.partition({"one": tx}, {"a": "one", "b": "one"}),
        lambda tx: optax.chain(optax.adaptive_grad_clip(1e9), tx),
    ],
)
def test_a_loop_that_counts_otherwise(wrap):
    """A resumed loop begins at 0, its optimizer does not."""
    transform = wrap(optax.adam(SCHEDULE))
    state, params = transform.init(PARAMS), PARAMS
    monitor = geodiag_jax.Monitor(loss, lr=SCHEDULE, every=1, max_hvps=8)
    for step in range(6):
        updates, state = transform.update(gradient_of(params), state, params)
        new = optax.apply_updates(params, updates)
        if step >= 3:
            monitor.observe(step - 3, params, new, state)
        params = new
    assert [r.lr for r in monitor.records] == pytest.approx([float(SCHEDULE(t)) for t in (3, 4, 5)])
    assert finite(monitor.records) == [False, True, True]


class TestAround:
    """Before and after a step whose buffers are donated."""

    def records(self, *, after=True):
        transform, params = optax.adam(LR), PARAMS
        state = transform.init(params)
        monitor = geodiag_jax.Monitor(loss, lr=LR, every=2, max_hvps=8)
        for step in range(5):
            if monitor.due(step):
                monitor.before(step, params, state)
            updates, state = transform.update(gradient_of(params), state, params)
            params = optax.apply_updates(params, updates)
            monitor.after(params, *([state] if after else []))
        return monitor.records

    def test_as_observed(self):
        around, observed = self.records(), run(optax.adam(LR), steps=5, every=2)
        for one, other in zip(around, observed, strict=True):
            assert one.sharpness == pytest.approx(other.sharpness, rel=1e-9)
            assert (one.threshold, one.note) == (other.threshold, other.note)

    def test_without_the_state_after(self):
        records = self.records(after=False)
        assert not any(finite(records))
        assert all("state before the step" in r.note for r in records[1:])

    def test_a_step_that_never_came(self):
        transform = optax.adam(LR)
        _, state = transform.update(gradient_of(PARAMS), transform.init(PARAMS), PARAMS)
        with geodiag_jax.Monitor(loss, lr=LR, every=1, max_hvps=8) as monitor:
            monitor.before(1, PARAMS, state)
        (record,) = monitor.records
        assert "the step was not observed" in record.note
        assert math.isfinite(record.sharpness)
        assert np.isnan(record.threshold)
