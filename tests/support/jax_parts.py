"""What the JAX cases share: the list, the data, small layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Case = Callable[[Any], dict[str, Any]]
CASES: dict[str, Case] = {}
CLASSES, TOKENS, WIDTH = 4, 11, 8


def case(name: str) -> Callable[[Case], Case]:
    """Enter a function into the list under ``name``."""

    def enter(build: Case) -> Case:
        CASES[name] = build
        return build

    return enter


def cast(tree: Any, dtype: Any) -> Any:
    """Floating arrays drawn in float32, as JAX arrays of ``dtype``; the rest as it is."""

    def leaf(x: Any) -> Any:
        if not isinstance(x, (jax.Array, np.ndarray)):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        x = jnp.asarray(x)
        return x.astype(jnp.float32).astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree_util.tree_map(leaf, tree)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def vectors(rows: int = 16, seed: int = 1) -> Any:
    """A batch (x, labels) of vectors."""
    r = np.random.default_rng(seed)
    return r.standard_normal((rows, WIDTH)), r.integers(0, CLASSES, rows)


def series() -> Any:
    """A batch (x, labels) of sequences of five vectors."""
    r = np.random.default_rng(1)
    return r.standard_normal((8, 5, WIDTH)), r.integers(0, CLASSES, 8)


def images() -> Any:
    r = np.random.default_rng(1)
    return r.standard_normal((8, 6, 6, 2)), r.integers(0, CLASSES, 8)


def cross_entropy(logits: Any, labels: Any) -> Any:
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
    return -jnp.mean(picked)


def layer(r: np.random.Generator, into: int, out: int) -> dict[str, Any]:
    return {"b": 0.1 * r.standard_normal(out), "w": r.standard_normal((into, out)) / np.sqrt(into)}


def affine(p: dict[str, Any], x: Any) -> Any:
    return x @ p["w"] + p["b"]


def two_layers(inner: Callable[[Any], Any], dtype: Any, data: Any = None) -> dict[str, Any]:
    """``inner`` between two dense layers, in the nested dicts that Haiku makes."""
    r = rng()
    params = {"mlp/~/linear_0": layer(r, WIDTH, WIDTH), "mlp/~/linear_1": layer(r, WIDTH, CLASSES)}

    def loss(params: Any, x: Any, y: Any) -> Any:
        hidden = inner(affine(params["mlp/~/linear_0"], x))
        return cross_entropy(affine(params["mlp/~/linear_1"], hidden), y)

    data = vectors() if data is None else data
    return {"model": loss, "params": cast(params, dtype), "data": cast(data, dtype)}
