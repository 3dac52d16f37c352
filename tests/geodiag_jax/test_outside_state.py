"""State in Python around a loss or its data: given back, or noted at the first measurement."""

from __future__ import annotations

import pickle
import random
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
import geodiag_jax
from geodiag_jax import loss_contents, loss_key, outside_state, rng

W = {"w": jnp.arange(1.0, 4.0)}
counted = 0


def square(p):
    return jnp.sum(p["w"] ** 2)


class Trainer:
    def __init__(self, inner=None):
        self.calls, self.inner = 0, inner

    def __call__(self, p):
        if self.inner is None:
            self.calls += 1
        else:
            self.inner.n += 1
        return square(p)

    method = __call__


def of_cell():
    n = 0

    def loss(p):
        nonlocal n
        n += 1
        return square(p)

    return loss


def of_global():
    def loss(p):
        global counted
        counted += 1
        return square(p)

    return loss


def of_container(make, change):
    kept = make()
    return lambda p: (change(kept), square(p))[1]


KEPT = {
    "cell": (of_cell, "n"),
    "global": (of_global, "counted"),
    "list": (lambda: of_container(list, lambda x: x.append(1)), "kept"),
    "dict": (lambda: of_container(lambda: {"n": 0}, lambda x: x.update(n=x["n"] + 1)), "kept"),
    "array": (lambda: of_container(lambda: np.zeros(2), lambda x: x.__iadd__(1)), "kept"),
    "generator": (
        lambda: of_container(lambda: np.random.default_rng(0), lambda x: x.random()),
        "kept",
    ),
    "object": (
        lambda: of_container(types.SimpleNamespace, lambda x: setattr(x, "key", object())),
        "kept",
    ),
    "callable": (Trainer, "Trainer', 'Trainer.calls"),
    "method": (lambda: Trainer().method, "self', 'self.calls"),
    "attribute of a callable's": (lambda: Trainer(types.SimpleNamespace(n=0)), "Trainer.inner"),
    "jitted": (lambda: jax.jit(of_cell()), "n"),
}


@pytest.fixture(autouse=True)
def _nothing_seen(monkeypatch):
    monkeypatch.setattr(loss_contents, "_seen", type(loss_contents._seen)())


@pytest.mark.parametrize("kind", KEPT)
def test_what_a_trace_changes_is_noted(kind):
    make, name = KEPT[kind]
    oracle = geodiag.problem(make(), params=W, engine="recompute").at()
    oracle.hvp(W)
    (note,) = oracle.notes
    assert f"a trace of the loss changes '{name}'" in note


def test_the_first_record_says_so():
    monitor = geodiag_jax.Monitor(of_cell(), "l2", lr=0.1, every=1, max_hvps=3)
    record = monitor.observe(0, W, {"w": 0.8 * W["w"]})
    assert "a trace of the loss changes 'n'" in record.note


class Keys:
    """A key that each call splits."""

    def __init__(self):
        self.key = jax.random.key(0)

    def attribute(self, p):
        self.key, _ = jax.random.split(self.key)
        return square(p)


def test_no_array_of_a_trace_stays_where_the_loss_keeps_it():
    keys, key, last = Keys(), jax.random.key(2), [jnp.zeros(3)]

    def of_variables(p):
        nonlocal key
        key, _ = jax.random.split(key)
        last[0] = p["w"]
        return square(p)

    before = key
    for loss in (keys.attribute, of_variables):
        oracle = geodiag.problem(loss, params=W, engine="recompute").at()
        oracle.hvp(W)
        assert oracle.notes == ()
    assert key is before
    assert not any(isinstance(x, jax.core.Tracer) for x in (keys.key, key, last[0]))
    jax.random.normal(keys.key)  # goes on


class Cached:
    """Statistics in containers of its object, beside a counter and a log."""

    def __init__(self):
        self.calls, self.log = 0, []
        self.cache = {"bn": {"mean": None}, "seen": [(jnp.zeros(3),)]}

    def __call__(self, p):
        self.calls += 1
        self.log.append(self.calls)
        self.last = p["w"]
        self.cache["bn"]["mean"] = jnp.mean(p["w"])
        self.cache["seen"][0] = (p["w"],)
        self.cache["new"] = {"w": [p["w"]]}
        return square(p)


def test_arrays_of_a_trace_alone_make_way():
    loss = Cached()
    geodiag.problem(loss, params=W, engine="recompute").at().hvp(W)
    assert not hasattr(loss, "last")
    assert loss.cache["bn"] == {"mean": None}
    assert not isinstance(loss.cache["seen"][0][0], jax.core.Tracer)
    assert list(loss.cache) == ["bn", "seen"]
    assert loss.calls == len(loss.log) > 0


def test_functions_that_name_each_other_are_looked_at_once():
    looked, names = [], [f"helper{i}" for i in range(14)]
    space = {"square": square}
    body = f"[{', '.join(names)}]\n    return square(p)"
    for name in names:
        exec(f"def {name}(p):\n    {body}", space)
    plain = outside_state._variables
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outside_state, "_variables", lambda f: looked.append(f) or plain(f))
        outside_state.state_of(space["helper0"])
    assert len(looked) <= 15 * (outside_state.DEEPEST + 1)
    assert len(loss_key.functions_of(space["helper0"])) == 15


class Drawing:
    """A loader that draws from the system, which has no state."""

    def __init__(self):
        self.rng = random.SystemRandom()

    def __iter__(self):
        self.rng.random()
        yield (jnp.ones(3),)


def test_generators_without_a_state_are_left_out():
    rng = random.SystemRandom()
    data = Drawing()

    def loss(p, x):
        return jnp.sum(x * p["w"] ** 2) + 0.0 * rng.random() + 0.0 * data.rng.random()

    assert float(geodiag.sharpness(loss, params=W, data=data)) == pytest.approx(2.0, rel=1e-6)


class Shuffled:
    """Batches in another order and of other noise in every epoch."""

    def __iter__(self):
        for i in np.random.permutation(3):
            yield (jnp.arange(3.0) + float(i) + random.random(),)


def states():
    return pickle.dumps((random.getstate(), np.random.get_state(legacy=False)))


def test_draws_of_a_loader_and_of_a_loss_are_given_back_and_the_same_in_each_pass(monkeypatch):
    monkeypatch.setattr(rng, "others", frozenset)  # whatever other tests left
    np.random.seed(0), random.seed(0)
    rows = np.stack([np.asarray(x) for (x,) in Shuffled()])
    np.random.seed(0), random.seed(0)
    before = states()

    def loss(p, x):
        return jnp.sum(x * p["w"] ** 2) * (1.0 + 0.0 * np.random.rand())

    result = geodiag.sharpness(loss, params=W, data=Shuffled())
    assert states() == before
    assert float(result) == pytest.approx(2 * rows.mean(0).max(), rel=1e-5)
    assert result.notes == ()


def drawing(p):
    return jnp.sum(p["w"]) * np.random.rand()


@pytest.mark.parametrize(
    ("loss", "data"), [(lambda p, x: jnp.sum(x * p["w"]), Shuffled()), (drawing, None)]
)
def test_beside_another_thread_they_are_left_alone_and_noted(loss, data, monkeypatch):
    """Which may be the one that draws."""
    monkeypatch.setattr(rng, "others", lambda: frozenset({0}))
    before = states()
    oracle = geodiag.problem(loss, params=W, data=data, engine="recompute").at()
    if data is None:
        oracle.hvp(W)
    else:
        oracle.loss()
    assert states() != before
    assert oracle.notes == (rng.NOT_GIVEN_BACK,)
