"""``geodiag_jax.Monitor``: records against NumPy's formulas, and training that does not notice it.

The truth is the closed-form Hessian of logistic regression, and dense Hessians of small networks by
``jax.hessian``. Float64: 1e-9 unless said otherwise; S in ℓ2 to the square of its residual 0.02.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.flatten_util import ravel_pytree

import geodiag
import geodiag_jax
from geodiag import Update, errors
from tests.geodiag_jax.models import Counted, flat, logistic, logistic_params
from tests.geodiag_jax.runs import DATA, LR, Net, hessian_at, monitor_of, moved

S_L2 = 4e-4


def test_every_number_of_a_record():
    params = logistic_params()
    points = [params]
    with monitor_of(lr=LR, every=2, rtol=1e-6) as monitor:
        for step in range(5):
            points.append(moved(points[-1]))
            record = monitor.observe(step, points[-2], points[-1])
            assert (record is None) == (step % 2 == 1)
    assert [r.step for r in monitor.records] == [0, 2, 4]
    for r in monitor.records:
        here, there = points[r.step], points[r.step + 1]
        H, s = hessian_at(here), flat(there) - flat(here)
        g = flat(jax.grad(logistic)(here, *DATA))
        top, rise = np.linalg.eigvalsh(H)[-1], float(logistic(there, *DATA) - logistic(here, *DATA))
        assert r.loss == pytest.approx(float(logistic(here, *DATA)), rel=1e-12)
        assert r.sharpness == pytest.approx(top, rel=1e-9)
        assert r.dual_norm == pytest.approx(np.linalg.norm(g), rel=1e-9)
        assert r.directional_smoothness == pytest.approx(2 * (rise - g @ s) / (s @ s), rel=1e-9)
        assert r.curvature == pytest.approx(s @ H @ s / (s @ s), rel=1e-9)
        assert (r.lr, r.threshold) == (LR, 2 / LR)
        assert r.ratio == pytest.approx(top * LR / 2, rel=1e-9)
        assert r.note == ""


def test_adam_by_its_state():
    """S is λ_max(P^{-1/2} H P^{-1/2}) with the P of Adam's formulas, nested parameters and all."""
    net = Net()
    b1, b2, eps = 0.9, 0.99, 1e-4
    transform = optax.inject_hyperparams(optax.adam)(0.01, b1=b1, b2=b2, eps=eps)
    step, params, state = net.step(transform), net.params, None
    state = transform.init(params)
    monitor = geodiag_jax.Monitor(net.loss, data=net.data, every=1, rtol=1e-7)
    m = v = 0.0
    for t in range(1, 3):
        g = np.asarray(ravel_pytree(jax.grad(net.loss)(params, *net.data))[0])
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = (1 - b1**t) * (np.sqrt(v / (1 - b2**t)) + eps)
        new, state = step(params, state)
        record = monitor.observe(t, params, new, state)
        H = net.hessian(params)
        top = np.linalg.eigvalsh(H / np.sqrt(np.outer(p, p)))[-1]
        s = np.asarray(ravel_pytree(new)[0] - ravel_pytree(params)[0])
        assert record.note == ""
        assert record.sharpness == pytest.approx(top, rel=1e-6)
        assert record.dual_norm == pytest.approx(np.sqrt(g @ (g / p)), rel=1e-6)
        assert record.curvature == pytest.approx(s @ H @ s / (s @ (p * s)), rel=1e-6)
        assert record.threshold == pytest.approx(38 / 0.01, rel=1e-6)
        params = new


@pytest.mark.slow
def test_muon_by_its_state():
    net = Net()
    transform = optax.contrib.muon(0.02, beta=0.0)
    new, state = net.step(transform)(net.params, transform.init(net.params))
    monitor = geodiag_jax.Monitor(net.loss, data=net.data, lr=0.02, every=1, where="kernel",
                                  max_hvps=12, hyperparams={"beta": 0.0})  # fmt: skip
    record = monitor.observe(0, net.params, new, state)
    g = jax.grad(net.loss)(net.params, *net.data)
    nuclear = {k: np.linalg.norm(np.asarray(g[k]["kernel"]), "nuc") for k in g}
    dual = math.sqrt(4 / 3) * nuclear["in"] + nuclear["out"]  # radii √max(1, out/in)
    assert record.dual_norm == pytest.approx(dual, rel=1e-9)
    assert record.threshold == pytest.approx(2 * dual / 0.02, rel=1e-9)
    assert "a ratio of about 1.15, not 1" in record.note
    assert "no D, no ζ: the step also moved 'in.bias'" in record.note


class TestRule:
    def test_a_schedule(self):
        schedule = optax.exponential_decay(0.5, 1, 0.5)
        monitor, params = monitor_of(lr=schedule), logistic_params()
        for step in range(3):
            monitor.observe(step, params, moved(params, schedule(step)))
        assert [r.lr for r in monitor.records] == pytest.approx([0.5, 0.25, 0.125])
        assert [r.threshold for r in monitor.records] == pytest.approx([4, 8, 16])

    def test_as_stated(self):
        monitor, params = monitor_of(update=Update(LR, momentum=0.9)), logistic_params()
        assert monitor.observe(0, params, moved(params)).threshold == pytest.approx(3.8 / LR)
        monitor = monitor_of(update=lambda step: Update(1.0 / (step + 1)))
        assert monitor.observe(3, params, moved(params)).threshold == pytest.approx(8.0)

    def test_none(self):
        record = monitor_of().observe(0, logistic_params(), moved(logistic_params()))
        assert "neither lr= nor update= was given" in record.note

    @pytest.mark.parametrize(("norm", "known"), [("linf", True), ("l2", False)])
    def test_a_norm_asked_of_an_optimizer_with_its_own(self, norm, known):
        params = logistic_params()
        transform = optax.lion(0.1, b1=0.0, weight_decay=0.0)
        updates, state = transform.update(
            jax.grad(logistic)(params, *DATA), transform.init(params), params
        )
        monitor = monitor_of(norm, lr=0.1, hyperparams={"b1": 0.0})
        record = monitor.observe(0, params, optax.apply_updates(params, updates), state)
        assert math.isfinite(record.sharpness)
        assert math.isfinite(record.threshold) == known
        assert ("L2() is not the geometry of the optimizer" in record.note) != known

    def test_a_step_that_the_state_does_not_explain(self):
        """LAMB keeps Adam's state, and scales the step by norms that are not in it."""
        net, transform = Net(), optax.lamb(0.01)
        state = transform.init(net.params)
        new, state = net.step(transform)(net.params, state)
        monitor = geodiag_jax.Monitor(net.loss, data=net.data, lr=0.01, every=1)
        record = monitor.observe(0, net.params, new, state)
        assert math.isfinite(record.sharpness)
        assert math.isnan(record.threshold)
        assert "the step differs from what" in record.note

    def test_a_state_that_is_not_known(self):
        params = logistic_params()
        monitor = monitor_of(lr=LR)
        record = monitor.observe(0, params, moved(params), optax.adabelief(LR).init(params))
        assert math.isfinite(record.sharpness)
        assert "no threshold: the geometry of this optimizer state is not known" in record.note

    def test_a_live_norm(self):
        scale = [1.0, 4.0]
        monitor = monitor_of(lambda: geodiag.norms.Scaled(geodiag.norms.L2(), scale.pop()), lr=LR)
        params = logistic_params()
        first, second = (monitor.observe(k, params, moved(params)) for k in range(2))
        assert second.sharpness == pytest.approx(16 * first.sharpness, rel=2 * S_L2)


def trained(net, monitor=None, donate=(), steps=200):
    """The parameters after so many steps, as bytes, and the monitor's records."""
    transform = optax.adam(0.01)
    step = net.step(transform, donate_argnums=donate)
    params = jax.tree_util.tree_map(jnp.copy, net.params)
    state = transform.init(params)
    for k in range(steps):
        if donate and monitor is not None and monitor.due(k):
            monitor.before(k, params, state)
        before = params
        params, state = step(params, state)
        if donate and monitor is not None:
            monitor.after(params)
        elif monitor is not None:
            monitor.observe(k, before, params, state)
    if donate:
        assert all(x.is_deleted() for x in jax.tree_util.tree_leaves(before))
    return np.asarray(ravel_pytree((params, state))[0]).tobytes()


@pytest.mark.parametrize("donate", [(), (0, 1)])
@pytest.mark.parametrize("norm", ["l2", None])
def test_training_is_bit_identical(donate, norm):
    net = Net()
    monitor = geodiag_jax.Monitor(net.loss, norm, data=net.data, lr=0.01, every=20)
    assert trained(net, monitor, donate) == trained(net, None, donate)
    assert len(monitor.records) == 10
    known = monitor.records[1:] if donate and norm is None else monitor.records
    assert all(math.isfinite(r.sharpness + r.curvature) for r in known)
    if donate and norm is None:  # Adam has no P before its first step
        assert "the preconditioner is not known yet" in monitor.records[0].note


@pytest.mark.parametrize("arguments", [{}, {"engine": "recompute"}, {"where": "kernel"}])
def test_around_a_step_that_donates_the_record_is_the_same(arguments):
    net = Net()
    plain, around = (
        geodiag_jax.Monitor(net.loss, "l2", data=net.data, lr=0.01, every=3, **arguments)
        for _ in range(2)
    )
    trained(net, plain, steps=7)
    trained(net, around, donate=(0, 1), steps=7)
    for a, b in zip(plain.records, around.records, strict=True):
        assert (a.loss, a.sharpness, a.dual_norm) == (b.loss, b.sharpness, b.dual_norm)
        assert (a.directional_smoothness, a.curvature) == (b.directional_smoothness, b.curvature)
        assert a.num_hvps == b.num_hvps


def test_a_hundred_measurements_compile_once(caplog):
    """JAX compiles nothing, and traces the loss never again, after one round of cold checks."""
    net = Net()
    loss = Counted(net.loss)
    transform = optax.adam(0.01)
    step, params, state = net.step(transform), net.params, transform.init(net.params)
    monitors = [
        geodiag_jax.Monitor(loss, "l2", data=net.data, lr=0.01, every=1),
        geodiag_jax.Monitor(loss, data=net.data, lr=0.01, every=1),
    ]
    calls = []
    for k in range(100):
        new, state = step(params, state)
        with jax.log_compiles(k >= 45), caplog.at_level(logging.WARNING, "jax"):
            for monitor in monitors:
                monitor.observe(k, params, new, state)
        params = new
        calls.append(loss.calls)
    assert calls[0] == calls[-1] <= 4
    assert not [r for r in caplog.records if "compil" in r.getMessage().lower()]
    assert all(math.isfinite(r.sharpness) for m in monitors for r in m.records)


def test_it_keeps_no_parameters():
    params = logistic_params()
    monitor = monitor_of(lr=LR)
    new = moved(params)
    monitor.observe(0, params, new)
    held = [weakref.ref(x) for x in jax.tree_util.tree_leaves((params, new))]
    del params, new
    gc.collect()
    assert [x() for x in held] == [None] * 4


def test_close_and_log(tmp_path):
    path, params = tmp_path / "run.jsonl", logistic_params()
    with monitor_of(lr=LR, log=path) as monitor:
        monitor.observe(0, params, moved(params))
        monitor.before(1, params)
    assert monitor.observe(2, params, moved(params)) is None  # it is closed
    first, second = geodiag.read_records(path)
    assert first == monitor.records[0]
    assert "the step was not observed" in second.note
    assert monitor.after(params) is None


def test_a_run_that_goes_on():
    net = Net()
    first, second = (geodiag_jax.Monitor(net.loss, "l2", data=net.data, lr=LR) for _ in range(2))
    same = jax.tree_util.tree_map(jnp.copy, net.params)
    cold = first.observe(0, net.params, same)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))  # no parameters seen yet
    warm = second.observe(10, net.params, same)
    assert warm.num_hvps <= 4 < cold.num_hvps
    assert warm.sharpness == pytest.approx(cold.sharpness, rel=2 * S_L2)
    with pytest.raises(errors.ArgumentError):
        second.load_state_dict({})
