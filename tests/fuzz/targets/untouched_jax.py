"""The same for JAX: runs with state in Python around the loss, and events in them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import geodiag
import geodiag_jax
from tests.fuzz.case import Case
from tests.fuzz.targets.untouched import surroundings

STEPS = 3
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.05),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9),
    "adam": lambda: optax.adam(0.05),
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.05),
}
EVENTS = ("none", "signal", "thread", "exception", "resumed", "replaced")


class Holder:
    def __init__(self) -> None:
        self.n, self.seen, self.rng = 0, [], np.random.default_rng(0)
        self.key, self.last = jax.random.key(0), jnp.zeros(3)


def _count(h: Holder, p: Any) -> Any:
    h.n += 1
    return 1.0 + 0.01 * h.n


def _list(h: Holder, p: Any) -> Any:
    h.seen.append(1)
    return 1.0 + 0.01 * len(h.seen)


def _key(h: Holder, p: Any) -> Any:
    h.key, now = jax.random.split(h.key)
    return 1.0 + 0.01 * jax.random.uniform(now)


def _last(h: Holder, p: Any) -> Any:
    value, h.last = jnp.sum(h.last), jax.lax.stop_gradient(p["w"])
    return 1.0 + 0.01 * value


STATES: dict[str, Callable[[Holder, Any], Any]] = {
    "none": lambda h, p: 1.0,
    "count": _count,
    "list": _list,
    "generator": lambda h, p: 1.0 + 0.01 * float(h.rng.random()),
    "library generators": lambda h, p: 1.0 + 0.01 * (random.random() + float(np.random.random())),
    "key": _key,
    "last": _last,
}


def of_closure(use: Any, h: Holder) -> Any:
    return lambda p, x: jnp.mean(jnp.tanh(x @ p["w"]) ** 2) * use(h, p)


class Trainer:
    def __init__(self, use: Any, h: Holder) -> None:
        self.use, self.h = use, h

    def __call__(self, p: Any, x: Any) -> Any:
        return jnp.mean(jnp.tanh(x @ p["w"]) ** 2) * self.use(self.h, p)


class Loader:
    """Two batches, in an order and with noise of the library's generators."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __iter__(self) -> Any:
        for i in np.random.permutation(2):
            yield (self.x[i::2] + 0.01 * np.random.standard_normal(),)


def plain(tree: Any) -> list[Any]:
    """Leaves as what can be compared to the bit."""
    return [
        np.asarray(jax.random.key_data(x) if hasattr(x, "_base_array") else x).tolist()
        for x in jax.tree_util.tree_leaves(tree)
    ]


def trained(
    use: Any, place: Any, optimizer: Any, kind: str, at: int, jitted: bool, watch: dict[str, Any]
) -> tuple[list[Any], list[Any]]:
    """What a run leaves, and its records; ``watch``: the monitor's options, {} without one."""
    np.random.seed(0), random.seed(0)
    h = Holder()
    loss = place(use, h)
    x = jnp.asarray(np.random.standard_normal((6, 3)))
    params = {"w": jnp.asarray(np.random.standard_normal(3))}
    transform = optimizer()
    state = transform.init(params)
    gradient = jax.grad(loss)
    gradient = jax.jit(gradient) if jitted else gradient
    options = dict(watch)
    breaks, calls = options.pop("breaks", 0), []
    loaded = options.pop("loaded", False)

    def measured(p: Any, x: Any) -> Any:
        calls.append(1)
        if len(calls) == breaks:
            raise RuntimeError("the loss's own")
        return loss(p, x)

    monitor = watch and geodiag_jax.Monitor(
        measured if breaks else loss,
        "l2",
        data=Loader(x) if loaded else (x,),
        every=1,
        max_hvps=2,
        **options,
    )
    for step in range(STEPS):
        if step == at and kind == "replaced":
            transform = optax.sgd(0.02)
            state = transform.init(params)
        if step == at and kind == "resumed":
            leaves, tree = jax.tree_util.tree_flatten(state)
            state = jax.tree_util.tree_unflatten(tree, [jnp.asarray(np.asarray(y)) for y in leaves])
        updates, state = transform.update(gradient(params, x), state, params)
        new = optax.apply_updates(params, updates)
        if monitor:
            try:
                monitor.observe(step, params, new, state)
            except (RuntimeError, geodiag.GeodiagError):  # a first step tries the loss out
                assert step == 0
                assert breaks
                monitor.observe(step, params, new, state)
        params = new
    kept = [h.n, len(h.seen), str(h.rng.bit_generator.state), plain([h.key, h.last])]
    rngs = [random.getstate(), str(np.random.get_state())]
    return [plain(params), plain(state), kept, rngs], monitor.records if monitor else []


def untouched(case: Case) -> None:
    """The same bits with and without the monitor, and no exception out of a step."""
    draw = case.draw
    name, place = draw(st.sampled_from(list(STATES))), draw(st.sampled_from((of_closure, Trainer)))
    optimizer = OPTIMIZERS[draw(st.sampled_from(list(OPTIMIZERS)))]
    kind, at = draw(st.sampled_from(EVENTS)), draw(st.integers(0, 2))
    # Training under jit leaks what a loss keeps by itself.
    jitted = name not in ("key", "last") and draw(st.booleans())
    watch = {
        "engine": draw(st.sampled_from(("auto", "recompute", "finite-difference"))),
        "loaded": draw(st.booleans()),
        "lr": 0.05,
    }
    if kind == "exception":
        watch["breaks"] = draw(st.integers(1, 6))
    case.said.append(f"{name} in {place.__name__}, {kind} at {at}, jitted {jitted}, {watch}")
    alone, _ = trained(STATES[name], place, optimizer, kind, at, jitted, {})
    with surroundings("none" if kind == "exception" else kind, []):
        watched, records = trained(STATES[name], place, optimizer, kind, at, jitted, watch)
    case.answered += 1
    said = " ".join(r.note for r in records)
    assert len(records) == STEPS
    same = watched == alone or "a trace of the loss changes" in said
    # Beside another thread what the loader draws is left drawn, as the page on faults says.
    assert same or (kind == "thread" and (watch["loaded"] or name == "library generators")), said


TARGETS = {"untouched (jax)": (untouched, 0.02)}
