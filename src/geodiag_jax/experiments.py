"""Three small models and their trainer, for ``geodiag demo`` and ``geodiag reproduce``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import geodiag
from geodiag.blocks import Array, Blocks
from geodiag.oracles import Oracle
from geodiag.records import Record
from geodiag_jax.monitor import Monitor
from geodiag_jax.optimizers.non_euclidean import non_euclidean_gd

Params: TypeAlias = "dict[str, Any]"
HEADS = 2


class Trainer:
    """Training that can be measured between steps.

    It runs in the precision of the weights, which have outputs first: float64 only where JAX has it
    enabled. ``model`` is a key of ``MODELS``; ``x, y`` is the batch.
    """

    def __init__(self, model: str, weights: dict[str, np.ndarray[Any, Any]], x: Any, y: Any):
        self._data = self._batch = (jnp.asarray(x), jnp.asarray(y))
        # Flax's order, height × width × in × out, from which geodiag reads kernels as matrices.
        ordered = {n: w.transpose(2, 3, 1, 0) if w.ndim == 4 else w for n, w in weights.items()}
        self._params: Params = {name: jnp.asarray(w) for name, w in ordered.items()}
        self._held: Params = {}  # what no step moves
        run = MODELS[model]
        criterion = cross_entropy if model == "transformer" else squared_error

        def loss(params: Params, x: Array, y: Array) -> Array:
            return criterion(run(params | self._held, x), y)

        self._loss: Callable[..., Array] = loss
        self.problem = geodiag.problem(loss, params=self._params, data=self._data)
        self._monitor: Monitor | None = None
        self._taken = 0

    def set_optimizer(self, norm: Any, lr: float, normalized: bool) -> None:
        self._set(non_euclidean_gd(lr, norm, normalized))

    def observe(
        self, optimizer: str, lr: float, options: Mapping[str, Any], every: int
    ) -> Sequence[Record]:
        if optimizer == "Muon":
            self._held = {name: w for name, w in self._params.items() if w.ndim != 2}
            self._params = {name: w for name, w in self._params.items() if w.ndim == 2}
        own = renamed(optimizer, options)
        clip = own.pop("clip", None)
        transform = OPTIMIZERS[optimizer](lr, **own)
        if clip is not None:
            transform = optax.chain(optax.clip_by_global_norm(clip), transform)
        self._set(transform)
        # The state of SGD does not tell its norm.
        norm = "l2" if optimizer == "SGD" else None
        given: dict[str, Any] = {"lr": lr, "hyperparams": own, "every": every}
        self._monitor = Monitor(self._loss, norm, data=self._data, **given)
        return self._monitor.records

    def set_batch(self, chosen: Any) -> None:
        self._batch = self._data[0][chosen], self._data[1][chosen]

    def on_batch(self, point: Blocks) -> Oracle:
        loss, gradient = self._compiled
        pair = (lambda w: loss(w, *self._batch), lambda w: gradient(w, *self._batch))
        return geodiag.problem(pair, params=point).at()

    def _set(self, transform: Any) -> None:
        self._compiled = jax.jit(self._loss), jax.jit(jax.grad(self._loss))
        self._state = transform.init(self._params)

        def update(params: Params, state: Any, *batch: Array) -> Any:
            gradients = jax.grad(self._loss)(params, *batch)
            updates, state = transform.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self._update = jax.jit(update)

    def point(self) -> Blocks:
        return self._params

    def step(self) -> None:
        before = self._params
        self._params, self._state = self._update(before, self._state, *self._batch)
        if self._monitor is not None:
            self._monitor.observe(self._taken, before, self._params, self._state)
        self._taken += 1


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "Muon": optax.contrib.muon,
    "Lion": optax.lion,
    "AdamW": optax.adamw,
    "SGD": optax.sgd,
}


def renamed(optimizer: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """torch's options under optax's names. Weights have outputs first, which Muon is told."""
    own = dict(options)
    if "betas" in own:
        own["b1"], own["b2"] = own.pop("betas")
    if optimizer == "Muon":
        own["beta"] = own.pop("momentum")
        own["muon_weight_dimension_numbers"] = optax.contrib.MuonDimensionNumbers(1, 0)
    return own


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
