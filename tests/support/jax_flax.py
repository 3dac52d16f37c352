"""JAX cases in Flax (linen and nnx)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from tests.support.jax_parts import CLASSES, WIDTH, case, cast, cross_entropy, images, vectors


class Dense(linen.Module):
    """Dense layers with LayerNorm."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.gelu(linen.LayerNorm(dtype=x.dtype)(linen.Dense(WIDTH)(x)))
        return linen.Dense(CLASSES)(x)


class Convolutions(linen.Module):
    """Two convolutions, the first with BatchNorm."""

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = linen.Conv(4, (3, 3))(x)
        x = linen.silu(linen.BatchNorm(use_running_average=not train, momentum=0.5)(x))
        x = linen.avg_pool(x, (2, 2), (2, 2))
        x = linen.silu(linen.Conv(4, (3, 3), padding="VALID")(x))
        return linen.Dense(CLASSES)(x.reshape(len(x), -1))


class Dropped(linen.Module):
    """An MLP with dropout."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Dropout(0.3, deterministic=False)(jnp.tanh(linen.Dense(WIDTH)(x)))
        return linen.Dense(CLASSES)(x)


def linen_case(module: linen.Module, data: Any, dtype: Any, **options: Any) -> dict[str, Any]:
    """A linen module measured in its "params"; its other collections come along."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = module.init(keys, np.asarray(data[0], np.float32))
    # Other running statistics than the initial ones, and biases that are not zero.
    variables = jax.tree_util.tree_map(
        lambda v: v + 0.1 * jnp.cos(jnp.arange(v.size).reshape(v.shape)), variables
    )

    def loss(variables: Any, x: Any, y: Any) -> Any:
        rngs = {"dropout": keys["dropout"]}
        logits, _ = module.apply(variables, x, rngs=rngs, mutable=["batch_stats"], **options)
        return cross_entropy(logits, y)

    params, data = cast(dict(variables), dtype), cast(data, dtype)
    return {"model": loss, "params": params, "data": data, "where": r"^params\."}


@case("flax linen: dense, LayerNorm")
def linen_dense(dtype: Any) -> dict[str, Any]:
    return linen_case(Dense(), vectors(), dtype)


@case("flax linen: convolutions, BatchNorm (train)")
def linen_train(dtype: Any) -> dict[str, Any]:
    return linen_case(Convolutions(), images(), dtype, train=True)


@case("flax linen: convolutions, BatchNorm (eval)")
def linen_eval(dtype: Any) -> dict[str, Any]:
    return linen_case(Convolutions(), images(), dtype)


@case("flax linen: dropout, fixed key")
def linen_dropout(dtype: Any) -> dict[str, Any]:
    return linen_case(Dropped(), vectors(), dtype)


class Net(nnx.Module):
    """An MLP with BatchNorm and dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(self.dropout(jnp.tanh(self.norm(self.first(x)))))


def nnx_case(dtype: Any, train: bool) -> dict[str, Any]:
    model = Net(nnx.Rngs(0))
    (model.train if train else model.eval)()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rest = cast(rest, jnp.promote_types(dtype, jnp.float32))  # running statistics

    def loss(params: Any, x: Any, y: Any) -> Any:
        return cross_entropy(nnx.merge(graph, params, rest, copy=True)(x), y)

    return {"model": loss, "params": cast(params, dtype), "data": cast(vectors(), dtype)}


@case("flax nnx: BatchNorm, dropout (train)")
def nnx_train(dtype: Any) -> dict[str, Any]:
    return nnx_case(dtype, train=True)


@case("flax nnx: BatchNorm, dropout (eval)")
def nnx_eval(dtype: Any) -> dict[str, Any]:
    return nnx_case(dtype, train=False)
