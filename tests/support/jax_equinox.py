"""JAX cases in Equinox: the module itself is the pytree that is measured."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.support.jax_parts import CLASSES, WIDTH, case, cast, cross_entropy, series, vectors


class Gated(eqx.Module):
    """An MLP with a static field, a function, dropout and its inference flag."""

    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear
    activation: Any
    power: int = eqx.field(static=True)

    def __init__(self, key: Any) -> None:
        one, two = jax.random.split(key)
        self.first = eqx.nn.Linear(WIDTH, WIDTH, key=one)
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.dropout = eqx.nn.Dropout(0.3)
        self.last = eqx.nn.Linear(WIDTH, CLASSES, key=two)
        self.activation, self.power = jnp.tanh, 2

    def __call__(self, x: Any, key: Any) -> Any:
        x = self.activation(self.norm(self.first(x)))
        return self.last(self.dropout(x + x**self.power, key=key))


def gated(dtype: Any, inference: bool) -> dict[str, Any]:
    model = eqx.nn.inference_mode(Gated(jax.random.key(0)), inference)

    def loss(model: Any, x: Any, y: Any) -> Any:
        keys = jax.random.split(jax.random.key(1), len(x))
        return cross_entropy(jax.vmap(model)(x, keys), y)

    return {"model": loss, "params": cast(model, dtype), "data": cast(vectors(), dtype)}


@case("equinox: static fields, dropout (train)")
def gated_train(dtype: Any) -> dict[str, Any]:
    return gated(dtype, inference=False)


@case("equinox: static fields, dropout (inference)")
def gated_inference(dtype: Any) -> dict[str, Any]:
    return gated(dtype, inference=True)


class Recurrent(eqx.Module):
    """An LSTM cell under scan."""

    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        one, two = jax.random.split(key)
        self.cell = eqx.nn.LSTMCell(WIDTH, WIDTH, key=one)
        self.head = eqx.nn.Linear(WIDTH, CLASSES, key=two)

    def __call__(self, xs: Any) -> Any:
        start = (jnp.zeros(WIDTH, xs.dtype), jnp.zeros(WIDTH, xs.dtype))
        (h, _), _ = jax.lax.scan(lambda s, x: (self.cell(x, s), None), start, xs)
        return self.head(h)


@case("equinox: LSTM (lax.scan)")
def lstm(dtype: Any) -> dict[str, Any]:
    model = Recurrent(jax.random.key(0))

    def loss(model: Any, x: Any, y: Any) -> Any:
        return cross_entropy(jax.vmap(model)(x), y)

    return {"model": loss, "params": cast(model, dtype), "data": cast(series(), dtype)}
