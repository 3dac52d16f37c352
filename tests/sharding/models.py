"""A two-layer network over a mesh, the same on one device, and what both are compared by.

Tensors of two and three axes, split along the first or the last; a batch split over "data".
"""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import geodiag
from geodiag.blocks import map_blocks, namespace

HERE = PartitionSpec()
SPECS = {
    "b": PartitionSpec("model"),
    "heads": PartitionSpec(None, None, "model"),
    "w": PartitionSpec(None, "model"),
    "z": PartitionSpec("model", None),
}
SHAPES = {"b": (6,), "heads": (2, 5, 4), "w": (4, 6), "z": (6, 5)}


def mesh(**axes: Any) -> Mesh:
    """Two by two of the first four devices, its axes Auto."""
    return Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"), **axes)


def loss(params: dict[str, Any], x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ params["w"] + params["b"]) @ params["z"]
    both = jnp.einsum("ni,kij->knj", jnp.tanh(hidden), params["heads"])
    return jnp.mean((both[0] + both[1] ** 2 - y) ** 2)


def draw() -> tuple[dict[str, Any], tuple[Any, Any]]:
    """Parameters and a batch, in host memory."""
    r = np.random.default_rng(3)
    params = {name: r.standard_normal(shape) / 2 for name, shape in SHAPES.items()}
    return params, (r.standard_normal((8, 4)), r.standard_normal((8, 4)))


def put(tree: Any, over: Mesh, *spec: Any) -> Any:
    return jax.device_put(tree, NamedSharding(over, PartitionSpec(*spec)))


def split(params: dict[str, Any], over: Mesh) -> dict[str, Any]:
    """Parameters in pieces over the axis "model"."""
    return {name: jax.device_put(x, NamedSharding(over, SPECS[name])) for name, x in params.items()}


class Largest(geodiag.Norm):
    """max |d_i|, with the last tensor counted twice: a user's norm in array-API functions."""

    def value(self, d: Any) -> Any:
        xp = namespace(d)
        sizes = [xp.max(xp.abs(x)) for x in d.values()]
        return xp.max(xp.stack([*sizes[:-1], 2 * sizes[-1]]))

    def lmo(self, g: Any) -> Any:
        *_, last = g
        signs = map_blocks(namespace(g).sign, g)
        return {name: x / 2 if name == last else x for name, x in signs.items()}


def kept(blocks: dict[str, Any], params: dict[str, Any]) -> bool:
    """Whether blocks lie as the parameters do."""
    return all(
        blocks[name].sharding.is_equivalent_to(x.sharding, x.ndim) for name, x in params.items()
    )


class Compilations:
    """Counts XLA's, from here on."""

    def __init__(self) -> None:
        self.seen: collections.Counter[str] = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, name: str, seconds: float, **_: Any) -> None:
        self.seen[name.rsplit("/", 1)[-1]] += 1

    def since(self) -> int:
        count = self.seen["backend_compile_duration"]
        self.seen.clear()
        return count
