"""Three small models and their trainer, for ``geodiag demo`` and ``geodiag reproduce``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

import geodiag
from geodiag.blocks import Array, Blocks
from geodiag_jax.optimizers.non_euclidean import non_euclidean_gd

Params: TypeAlias = "dict[str, Any]"
HEADS = 2


class Trainer:
    """Full-batch training that can be measured between steps.

    It runs in the precision of the weights, which have outputs first: float64 only where JAX has it
    enabled. ``model`` is a key of ``MODELS``; ``x, y`` is the batch.
    """

    def __init__(self, model: str, weights: dict[str, np.ndarray[Any, Any]], x: Any, y: Any):
        self._batch = (jnp.asarray(x), jnp.asarray(y))
        # Flax's order, height × width × in × out, from which geodiag reads kernels as matrices.
        ordered = {n: w.transpose(2, 3, 1, 0) if w.ndim == 4 else w for n, w in weights.items()}
        self._params: Params = {name: jnp.asarray(w) for name, w in ordered.items()}
        run = MODELS[model]
        criterion = cross_entropy if model == "transformer" else squared_error

        def loss(params: Params, x: Array, y: Array) -> Array:
            return criterion(run(params, x), y)

        self._loss: Callable[..., Array] = loss
        self.problem = geodiag.problem(loss, params=self._params, data=self._batch)

    def set_optimizer(self, norm: Any, lr: float, normalized: bool) -> None:
        transform = non_euclidean_gd(lr, norm, normalized)
        self._state = transform.init(self._params)

        def update(params: Params, state: Any, *batch: Array) -> Any:
            gradients = jax.grad(self._loss)(params, *batch)
            updates, state = transform.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self._update = jax.jit(update)

    def point(self) -> Blocks:
        return self._params

    def step(self) -> None:
        self._params, self._state = self._update(self._params, self._state, *self._batch)


def mlp(p: Params, x: Array) -> Array:
    """(n, channels, 8, 8) to (n, 10); weights and biases of the layers in name order."""
    weights, biases = ([p[n] for n in sorted(p) if p[n].ndim == k] for k in (2, 1))
    x = x.reshape(len(x), -1) @ weights[0].T + biases[0]
    for w, b in zip(weights[1:], biases[1:], strict=True):
        x = jnp.tanh(x) @ w.T + b
    return x


def cnn(p: Params, x: Array) -> Array:
    """(n, channels, 8, 8) to (n, 10)."""
    for i in (1, 2):
        layout = ("NCHW", "HWIO", "NCHW")
        x = jax.lax.conv_general_dilated(x, p[f"conv{i}"], (1, 1), "SAME", dimension_numbers=layout)
        x = jnp.tanh(x + p[f"b{i}"][:, None, None])
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).mean(axis=(3, 5))
    return x.reshape(len(x), -1) @ p["w3"].T + p["b3"]


def transformer(p: Params, tokens: Array) -> Array:
    """(n, t) characters to (n, t, vocabulary) logits."""
    x = p["embed"][tokens] + p["position"]
    x = x + _attention(p, _norm(p, 1, x))
    up = jax.nn.gelu(_norm(p, 2, x) @ p["up"].T + p["up_bias"], approximate=True)
    x = x + up @ p["down"].T + p["down_bias"]
    return _norm(p, 3, x) @ p["head"].T


def _norm(p: Params, i: int, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred * scale * p[f"norm{i}"] + p[f"shift{i}"]


def _attention(p: Params, x: Array) -> Array:
    n, t, width = x.shape
    q, k, v = (
        part.reshape(n, t, HEADS, -1).swapaxes(1, 2)
        for part in jnp.split(x @ p["qkv"].T, 3, axis=-1)
    )
    scores = q @ k.swapaxes(-1, -2) / (width // HEADS) ** 0.5
    later = jnp.triu(jnp.ones((t, t), dtype=bool), 1)
    mixed = jax.nn.softmax(jnp.where(later, -jnp.inf, scores), axis=-1) @ v
    return mixed.swapaxes(1, 2).reshape(n, t, width) @ p["out"].T


MODELS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


def squared_error(output: Array, target: Array) -> Array:
    """Mean over examples of the squared distance."""
    return jnp.mean(jnp.sum((output - target) ** 2, axis=1))


def cross_entropy(logits: Array, target: Array) -> Array:
    """Mean over characters."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()
