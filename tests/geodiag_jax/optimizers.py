"""Parameters for optax to train, the steps that it takes, and Adams in all places."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from geodiag_jax.pytree import name_of

LR = 0.02
rng = np.random.default_rng(3)
SHAPES = {"a": {"kernel": (6, 3), "bias": (3,)}, "b": {"kernel": (2, 5)}}
PARAMS = jax.tree_util.tree_map(
    lambda s: jnp.asarray(rng.standard_normal(s)), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
)
NAMES = ("a.bias", "a.kernel", "b.kernel")


def loss(params):
    """A quartic, so that every gradient is another one."""
    return sum(
        jnp.sum((x - 0.3) ** 4 / 4 * jnp.arange(1.0, x.size + 1).reshape(x.shape))
        for x in jax.tree_util.tree_leaves(params)
    )


gradient_of = jax.jit(jax.grad(loss))


def named(tree):
    """Blocks of a tree like the parameters."""
    return {name_of(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


class Step(NamedTuple):
    before: object  # the state
    state: object  # after it
    here: dict
    there: dict
    gradient: dict

    @property
    def move(self):
        return {name: self.there[name] - self.here[name] for name in self.here}


def train(transform, steps=1, params=PARAMS):
    """The last of so many steps."""
    state, update = transform.init(params), jax.jit(transform.update)
    for _ in range(steps):
        here, gradient = params, gradient_of(params)
        before = state
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return Step(before, state, named(here), named(params), named(gradient))


ADAM = {"b1": 0.8, "b2": 0.9, "eps": 1e-3}
ADAPTIVE = {
    "adam": (optax.adam(LR), {}),
    "adam, its own numbers": (optax.adam(LR, **ADAM, eps_root=1e-4), ADAM | {"eps_root": 1e-4}),
    "amsgrad": (optax.amsgrad(LR, b1=0.5, b2=0.2), {"b1": 0.5, "b2": 0.2}),
    "chain": (optax.chain(optax.zero_nans(), optax.chain(optax.adam(LR))), {}),
    "schedule": (optax.adam(optax.constant_schedule(LR)), {}),
    "injected": (optax.inject_hyperparams(optax.adam)(LR, **ADAM), {}),
    "guarded": (optax.apply_if_finite(optax.adam(LR), 3), {}),
    "named": (optax.named_chain(("adam", optax.scale_by_adam()), ("lr", optax.scale(-LR))), {}),
    "several steps": (optax.MultiSteps(optax.adam(LR), 1), {}),
    "partition": (
        optax.partition(
            {"one": optax.adam(LR), "two": optax.adam(LR)},
            {"a": {"kernel": "one", "bias": "two"}, "b": {"kernel": "two"}},
        ),
        {},
    ),
}
