"""What a loss reads apart from its arguments: parameters that escape, and values that change."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
import geodiag_jax

W = np.random.default_rng(0).standard_normal((4, 3))
B = np.array([0.1, -0.2, 0.4])
beta = 1.0
settings = types.SimpleNamespace(beta=1.0)


def params():
    return {"w": jnp.asarray(W), "b": jnp.asarray(B)}


def penalty(p):
    """Its Hessian is the identity."""
    return sum(jnp.sum(x**2) for x in jax.tree_util.tree_leaves(p)) / 2


OUTSIDE = params()
ESCAPES = {
    "one": (lambda p: penalty(p) + jnp.sum(OUTSIDE["w"] ** 2), "'w'"),
    "all": (lambda p: penalty(p) + penalty(OUTSIDE), "'b', 'w'"),
    "jit": (lambda p: penalty(p) + jax.jit(lambda x: x * jnp.sum(OUTSIDE["b"]))(p["b"][0]), "'b'"),
    "numpy": (lambda p: penalty(p) + jnp.sum(p["w"] * W), "'w'"),
    "stale": (
        lambda p: penalty(p) + jnp.sum(p["w"] * (W + 1)) + jnp.sum(p["b"] * (B + 1)),
        "the shapes of 'b', 'w'",
    ),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_parameters_read_from_outside_are_noted(name):
    loss, named = ESCAPES[name]
    (note,) = geodiag.sharpness(loss, params=params()).notes
    assert f"reads {named} from outside" in note.replace("arrays of ", "")
    assert "held constant" in note


DATA, TARGET = jnp.asarray(W[:2]), jnp.zeros(3)
INNOCENT = {
    "data": lambda p: penalty(p) + jnp.mean((DATA[:, :1] * p["b"]) ** 2),
    "zeros": lambda p: penalty(p) + jnp.sum((p["b"] - TARGET) ** 2),
    "one shape": lambda p: penalty(p) + jnp.sum((p["w"] - 2 * W) ** 2),
    "arguments": penalty,
}


@pytest.mark.parametrize("name", INNOCENT)
def test_other_arrays_are_not(name):
    assert geodiag.sharpness(INNOCENT[name], params=params()).notes == ()


class Task:
    def __init__(self):
        self.beta, self.calls = 1.0, 0

    def loss(self, p):
        self.calls += 1
        return self.beta * penalty(p)


def losses():
    """Losses β·penalty, with a function that sets β, by where they read it."""
    cell, options, task = 1.0, {"beta": 1.0}, Task()

    def set_cell(x):
        nonlocal cell
        cell = x

    def set_global(x):
        global beta
        beta = x

    return {
        "closure": (lambda p: cell * penalty(p), set_cell),
        "global": (lambda p: beta * penalty(p), set_global),
        "dict": (lambda p: options["beta"] * penalty(p), lambda x: options.update(beta=x)),
        "attribute": (
            lambda p: settings.beta * penalty(p),
            lambda x: setattr(settings, "beta", x),
        ),
        "method": (task.loss, lambda x: setattr(task, "beta", x)),
    }


@pytest.mark.parametrize("where", losses())
def test_a_number_that_changes_is_seen(where):
    """By new problems, by one that is kept, and by a monitor."""
    loss, put = losses()[where]
    put(1.0)
    kept = geodiag.problem(loss, params=params())
    monitor = geodiag_jax.Monitor(loss, "l2", lr=0.1, every=1)
    for step, value in enumerate((1.0, 10.0, 100.0)):
        put(value)
        for found in (
            geodiag.sharpness(loss, params=params()).value,
            geodiag.sharpness(kept).value,
            monitor.observe(step, params(), {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}).sharpness,
        ):
            assert found == pytest.approx(value, rel=1e-6)


def helper(p):
    return beta * penalty(p)


class Net:
    """Reads β in a method, and where it is called."""

    factors = (1.0,)

    def loss(self, p):
        return self.factors[0] * beta * penalty(p)

    def __call__(self, p):
        return self.loss(p)


class Inner(Net):
    def loss(self, p):
        return super().loss(p)


net, inner = Net(), Inner()
jitted = jax.jit(lambda p: helper(p))


def set_afresh(x):
    """A jitted function keeps the values that it was traced with, in training too."""
    global beta
    beta = x
    jitted.clear_cache()


def with_adds(coefficients):
    """Arrays have methods of the same names as lists."""

    def loss(p):
        steps, log = {}, []
        steps["n"] = p["b"].at[0].add(0.0)
        log.append(jnp.add(steps["n"], 0.0))
        return coefficients[0] * penalty({"w": p["w"], "b": log[0]})

    return loss


def further_losses():
    """The same, read further away."""
    listed, nested, array = [1.0], {"a": {"b": [1.0]}}, np.ones(1)

    def set_global(x):
        global beta
        beta = x

    return {
        "list": (lambda p: listed[0] * penalty(p), lambda x: listed.__setitem__(0, x)),
        "nested": (
            lambda p: nested["a"]["b"][0] * penalty(p),
            lambda x: nested["a"]["b"].__setitem__(0, x),
        ),
        "array": (lambda p: float(array[0]) * penalty(p), lambda x: array.__setitem__(0, x)),
        "helper": (lambda p: helper(p) + 0 * len(RECORDED), set_global),
        "list beside adds": (with_adds(listed), lambda x: listed.__setitem__(0, x)),
        "array beside adds": (with_adds(array), lambda x: array.__setitem__(0, x)),
        "called object": (net, set_global),
        "method of an object": (lambda p: net.loss(p), set_global),
        "inherited": (lambda p: inner.loss(p), set_global),
        "called by a loss": (lambda p: net(p), set_global),
        "of a class": (lambda p: net.loss(p), lambda x: setattr(Net, "factors", (x / beta,))),
        "jit": (lambda p: jitted(p), set_afresh),
        "jitted": (jitted, set_afresh),
    }


RECORDED: list[float] = []


@pytest.mark.parametrize("where", further_losses())
def test_what_is_read_further_away_is_seen(where):
    loss, put = further_losses()[where]
    found = []
    for value in (1.0, 10.0):
        put(value)
        found.append(float(geodiag.problem(loss, params=params()).at().loss()))
    assert found[1] == pytest.approx(10 * found[0], rel=1e-6)


class Recording(Task):
    def loss(self, p):
        self.kept.append(1)
        return super().loss(p)


def test_counters_compile_nothing_again():
    task, counted, calls, log = Recording(), {"n": 0, "log": []}, 0, [0.0, 1.0]
    task.kept = []

    def loss(p):
        nonlocal calls
        calls += 1
        counted["n"] += 1
        counted["log"].append(calls)
        log[len(counted["log"]) % 2] = calls + 1
        return penalty(p)

    for call in (loss, task.loss):
        for _ in range(3):
            geodiag.sharpness(call, params=params())
    assert calls == counted["n"] == task.calls == 2


run = {"scale": 2.0, "step": 0}


def test_a_number_beside_the_one_that_is_read_compiles_nothing_again():
    calls, held = [], {"scale": 2.0, "step": 0}

    def of_closure(p):
        calls.append(0)
        return held["scale"] * penalty(p)

    def of_global(p):
        calls.append(0)
        return (lambda: run["scale"])() * penalty(p)

    def in_a_loop(p):
        return sum(held[name] for name in ("scale", "step")) * penalty(p)

    for loss in (of_closure, of_global):
        traced = []
        for _ in range(3):
            run["step"] += 1
            held["step"] += 1
            assert geodiag.sharpness(loss, params=params()).value == pytest.approx(2.0)
            traced.append(len(calls))
        assert len(set(traced)) == 1
        calls.clear()
    found = geodiag.sharpness(in_a_loop, params=params()).value
    held["step"] += 1
    assert geodiag.sharpness(in_a_loop, params=params()).value == pytest.approx(found + 1.0)
