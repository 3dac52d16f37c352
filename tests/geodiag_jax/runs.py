"""Training runs in JAX, with their Hessians by other means, and monitors for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import geodiag_jax
from tests.geodiag_jax.models import X, Y, flat, logistic

LR = 0.5
DATA = (jnp.asarray(X), jnp.asarray(Y))


def hessian_at(params):
    A = np.column_stack([np.ones(20), X])
    p = 1 / (1 + np.exp(-A @ flat(params)))
    return (A.T * (p * (1 - p))) @ A / 20


def moved(params, lr=LR):
    """A step of gradient descent."""
    gradient = jax.grad(logistic)(params, *DATA)
    return jax.tree_util.tree_map(lambda w, g: w - lr * g, params, gradient)


def monitor_of(norm="l2", loss=logistic, **arguments):
    return geodiag_jax.Monitor(loss, norm, **{"data": DATA, "every": 1} | arguments)


class Net:
    """A tanh network over nested parameters, its batch, and its dense Hessian in name order."""

    def __init__(self):
        rng = np.random.default_rng(0)
        shapes = {"in": {"kernel": (3, 4), "bias": (4,)}, "out": {"kernel": (4, 2)}}
        self.params = jax.tree_util.tree_map(
            lambda s: jnp.asarray(rng.standard_normal(s)),
            shapes,
            is_leaf=lambda s: isinstance(s, tuple),
        )
        self.data = (
            jnp.asarray(rng.standard_normal((16, 3))),
            jnp.asarray(rng.standard_normal((16, 2))),
        )

    @staticmethod
    def loss(params, x, y):
        hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"])
        return jnp.mean((hidden @ params["out"]["kernel"] - y) ** 2)

    def step(self, transform, **jit):
        def step(params, state):
            gradient = jax.grad(self.loss)(params, *self.data)
            updates, state = transform.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(step, **jit)

    def hessian(self, params):
        w, build = ravel_pytree(params)
        return np.asarray(jax.hessian(lambda v: self.loss(build(v), *self.data))(w))
