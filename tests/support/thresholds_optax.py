"""Optax's optimizers on the quadratic of the torch ones: thresholds as read from their states."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import geodiag_jax
from tests.geodiag_torch.optimizers import Quadratic

HEAD = """
## optax

The same, of optax's optimizers, read from their states with the hyperparameters that a state does
not hold ([how](monitor_jax.md#norm-and-threshold)).

| rule | what is told | threshold on S | growth at 0.98 | growth at 1.02 |
|---|---|---|---|---|
"""
LR, HELD = 0.02, 1 - 1e-12
STEPS, MOST = 600, 1e3
WIDE = optax.piecewise_constant_schedule(2 * LR, {1: 0.5})  # LR from the second step on


class Rule(NamedTuple):
    transform: Any
    told: Mapping[str, Any] = MappingProxyType({})
    lr: float | None = LR


RULES = {
    "sgd(momentum=0.9)": Rule(optax.sgd(LR, 0.9), {"momentum": 0.9}),
    "sgd(momentum=0.7, nesterov)": Rule(
        optax.sgd(LR, 0.7, nesterov=True), {"momentum": 0.7, "nesterov": True}
    ),
    "inject_hyperparams(sgd)": Rule(
        optax.inject_hyperparams(optax.sgd)(LR, momentum=0.9), lr=None
    ),
    "adam": Rule(optax.adam(LR, b2=HELD), {"b2": HELD}),
    "adam, schedule": Rule(optax.adam(WIDE, b2=HELD), {"b2": HELD}),
    "adamw": Rule(
        optax.adamw(LR, 0.8, HELD, weight_decay=20.0),
        {"b1": 0.8, "b2": HELD, "weight_decay": 20.0},
    ),
    "nadam": Rule(optax.nadam(LR, 0.8, HELD), {"b1": 0.8, "b2": HELD, "nesterov": True}),
    "amsgrad": Rule(optax.amsgrad(LR, 0.5, HELD), {"b1": 0.5, "b2": HELD}),
    "rmsprop": Rule(optax.rmsprop(LR, HELD)),
    "rmsprop(momentum=0.8)": Rule(optax.rmsprop(LR, HELD, momentum=0.8), {"momentum": 0.8}),
    "contrib.ademamix": Rule(
        optax.contrib.ademamix(LR, 0.8, HELD, 0.9, 2.0),
        {"b1": 0.8, "b2": HELD, "b3": 0.9, "alpha": 2.0},
    ),
    "partition, two rates": Rule(
        optax.partition(
            {n: optax.inject_hyperparams(optax.sgd)(r, momentum=0.5)
             for n, r in (("a", LR), ("b", 3 * LR))},
            {"a": "a", "b": "b"},
        ),
        lr=None,
    ),
}  # fmt: skip


def start() -> tuple[Any, dict[str, Any]]:
    """(H, parameters)"""
    model = Quadratic()
    params = {n: jnp.asarray(p.detach().numpy() * 1e-6) for n, p in model.named_parameters()}
    return model.H.numpy(), params


def settled(transform: Any, params: Any) -> Any:
    """A state of large second moments, long after the start."""
    _, state = transform.update(
        jax.tree.map(jnp.zeros_like, params), transform.init(params), params
    )
    held = {
        n: jnp.linspace(1, 2 + i, x.size).reshape(x.shape)
        for i, (n, x) in enumerate(params.items())
    }
    small = jax.tree.map(lambda x: 1e-4 * x, held)  # beside the largest so far
    known = optax.tree_utils.tree_get_all_with_path
    values = {"nu": small if known(state, "nu_max") else held, "nu_max": held}
    values["count"] = jnp.asarray(10**9)
    return optax.tree_utils.tree_set(state, **{n: x for n, x in values.items() if known(state, n)})


def read(name: str) -> tuple[float, float, Any]:
    """(threshold, S/threshold at scale 1, state) of a rule."""
    transform, told, lr = RULES[name]
    H, params = start()
    state = settled(transform, params)
    norm, update = geodiag_jax.geometry(state, params, lr=lr, hyperparams=told)
    bound = norm.bind(geodiag_jax.JaxProblem(own_loss, params=params).space)
    ones = {n: np.ones(x.shape) for n, x in params.items()}
    p = np.concatenate([np.ravel(x) for x in bound.metric(ones).values()])
    edge = float(update.threshold(None))
    root = 1 / np.sqrt(p)
    return edge, float(np.linalg.eigvalsh(H * root[:, None] * root)[-1]) / edge, state


def own_loss(params: Any) -> Any:
    return sum(jnp.sum(x**2) for x in params.values())


def growth(name: str, ratio: float) -> float:
    """How much the largest |w| grows."""
    _, unit, state = read(name)
    transform, (H, params) = RULES[name].transform, start()
    shapes = {n: x.shape for n, x in params.items()}
    scaled = jnp.asarray(H * ratio / unit)

    def flat(w: Any) -> Any:
        return jnp.concatenate([jnp.ravel(x) for x in w.values()])

    def step(carry: Any, _: Any) -> Any:
        w, state = carry
        g = scaled @ flat(w)
        parts = dict(zip(shapes, jnp.split(g, [8]), strict=True))
        g = {n: x.reshape(shapes[n]) for n, x in parts.items()}
        updates, state = transform.update(g, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), jnp.max(jnp.abs(flat(w)))

    _, sizes = jax.jit(lambda carry: jax.lax.scan(step, carry, None, STEPS))((params, state))
    found = np.asarray(sizes) / float(jnp.max(jnp.abs(flat(params))))
    peak = np.nanmax(found)
    return float(peak if peak > MOST else found[-1])


def row(name: str) -> tuple[str, str, str]:
    """(rule, what is told, threshold) as the page has them."""
    told = ", ".join(f"{k} {float(x):g}" for k, x in RULES[name].told.items())
    with jax.enable_x64(True):
        edge = read(name)[0]
    return f"`{name}`", told or "nothing", f"{edge:.6g}"
