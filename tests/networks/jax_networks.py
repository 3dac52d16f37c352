"""A network as a JAX loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.networks.network import Network

ACTIVATIONS: dict[str, Any] = {
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "relu": jax.nn.relu,
    "identity": lambda x: x,
}


def params(network: Network) -> dict[str, Any]:
    """The parameters as a pytree; ``gain`` is a Python float, and ``count`` an integer."""
    values = network.parameters()
    cast = {k: jnp.asarray(x, dtype=network.dtype) for k, x in values.items()}
    count = len(network.widths) - 1
    made: dict[str, Any] = {
        "layers": [{w: cast[f"layers.{i}.{w}"] for w in ("weight", "bias")} for i in range(count)]
    }
    made |= {k: x for k, x in cast.items() if "." not in k and k != "outside"}
    if "float" in network.parts:
        made["gain"] = float(values["gain"])
    if "integer" in network.parts:
        made["count"] = 3
    return made


@jax.custom_vjp
def _wrong_second(x: Any) -> Any:
    return jnp.tanh(x)


# The factor is no function of x to JAX: its own derivative is lost.
_wrong_second.defvjp(
    lambda x: (jnp.tanh(x), jax.lax.stop_gradient(1 - jnp.tanh(x) ** 2)),
    lambda factor, g: (g * factor,),
)


@jax.custom_vjp
def _right(x: Any) -> Any:
    return jnp.tanh(x)


_right.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


def loss(network: Network) -> Any:
    """A loss of ``params, x, y``."""
    parts, act = network.parts, ACTIVATIONS[network.activation]
    outside = network.parameters().get("outside")
    if outside is not None:
        outside = jnp.asarray(outside, dtype=network.dtype)
    stop = jax.lax.stop_gradient

    def value(params: Any, x: Any, y: Any) -> Any:
        for i, layer in enumerate(params["layers"]):
            x = act(x @ layer["weight"].T + layer["bias"])
            if i == 0:
                x = x + outside * x if "closed over" in parts else x
                if "wrong second derivative" in parts:
                    x = _wrong_second(x)
                elif "custom function" in parts:
                    x = _right(x)
                if "straight-through" in parts:
                    x = x + stop(jnp.round(3 * x) / 3 - x)
        for part, name in (("scale", "scale"), ("float", "gain")):
            x = x * params[name] if part in parts else x
        out = x.sum(1)
        found = jnp.mean((out - y) ** 2)
        if "detached" in parts:
            found = found + jnp.mean((out * out - stop(0.7 * out)) ** 2)
        if "linear" in parts:
            found = found + 2 * params["slope"].sum()
        if "decay" in parts:
            leaves = {k: v for k, v in params.items() if k != "count"}
            found = found + 0.15 * sum(
                (p**2).sum() for p in map(jnp.asarray, jax.tree.leaves(leaves))
            )
        return found

    return value


def batch(network: Network) -> tuple[Any, ...]:
    return tuple(jnp.asarray(a, dtype=network.dtype) for a in network.batch())


def leaves(params: Any) -> dict[str, np.ndarray]:
    """By name, in float64."""
    found = {k: v for k, v in params.items() if k != "layers"}
    for i, layer in enumerate(params["layers"]):
        found |= {f"layers.{i}.{k}": x for k, x in layer.items()}
    return {k: np.asarray(x, dtype=np.float64) for k, x in found.items()}
