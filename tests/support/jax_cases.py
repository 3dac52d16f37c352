"""Architectures in JAX: name → function of a dtype, which returns arguments of ``geodiag.problem``.

    arguments = CASES["GRU (scan)"](jnp.float32)
    result = geodiag.sharpness(**arguments)
    gradient, point, sizes = flat_gradient(arguments)  # without geodiag, for a truth

``dtype`` (of jax.numpy, or its name) is that of the parameters and of the floating parts of the
data: float64, float32, bfloat16 or float16. Keys of the arguments: ``model`` (the loss),
``params``, ``data`` and, for some, ``where``. Weights and data are drawn in float32 and then cast,
so that float64 and float32 measure the same point. Every call makes a loss of its own: keep the
arguments to compile once.

SINGLE_INSIDE   cases that compute a part in float32, whatever the dtype
BLOCKED         cases whose forward-mode derivative is blocked: "auto" goes on in reverse
REFUSED         (case, dtype) that JAX itself refuses on a CPU, whoever calls the loss
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import jax_equinox, jax_flax, jax_plain
from tests.support.jax_parts import CASES, Case

__all__ = ["CASES", "Case", "jax_equinox", "jax_flax", "jax_plain"]

# jax.nn.dot_product_attention takes its softmax in float32, float64 arguments included.
SINGLE_INSIDE = {"jax.nn.dot_product_attention"}
BLOCKED = {"custom_vjp (forward mode blocked)"}
REFUSED = {("jax.nn.dot_product_attention", "float16")}


def flat_gradient(
    arguments: dict[str, Any],
) -> tuple[Callable[[Any], Any], Any, dict[str, int]]:
    """The gradient of a case as a function of one float64 vector, the vector it is measured at, and
    the names with their sizes, in order: by ``jax.grad``, with none of geodiag in it."""
    prefix = "params." if "where" in arguments else ""
    paths, treedef = jax.tree_util.tree_flatten_with_path(arguments["params"])
    names = [".".join(map(_component, path)) for path, _ in paths]
    leaves = [leaf for _, leaf in paths]
    places = [
        i
        for i, (name, x) in enumerate(zip(names, leaves, strict=True))
        if isinstance(x, jax.Array)
        and jnp.issubdtype(x.dtype, jnp.floating)
        and name.startswith(prefix)
    ]
    shapes = [leaves[i].shape for i in places]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    data = arguments["data"]
    batches = data if isinstance(data, list) else [data]
    weights = [len(jax.tree_util.tree_leaves(batch)[0]) for batch in batches]

    def total(measured: Any) -> Any:
        filled = list(leaves)
        for i, x in zip(places, measured, strict=True):
            filled[i] = x.astype(leaves[i].dtype)
        params = jax.tree_util.tree_unflatten(treedef, filled)
        parts = [
            weight * arguments["model"](params, *(batch if isinstance(batch, tuple) else (batch,)))
            for weight, batch in zip(weights, batches, strict=True)
        ]
        return sum(parts) / sum(weights)

    compiled = jax.jit(jax.grad(total))

    def gradient(at: Any) -> Any:
        pieces = zip(np.split(np.asarray(at), ends[:-1]), shapes, strict=True)
        found = compiled([jnp.asarray(piece.reshape(shape)) for piece, shape in pieces])
        return np.concatenate([np.ravel(x).astype(np.float64) for x in found])

    point = np.concatenate([np.ravel(leaves[i]).astype(np.float64) for i in places])
    sizes = {names[i]: int(np.prod(shape)) for i, shape in zip(places, shapes, strict=True)}
    return gradient, point, sizes


def _component(key: Any) -> str:
    return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))
