"""The JAX side of ``geodiag demo``: a small tanh MLP under non-Euclidean gradient descent."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import geodiag
from geodiag.blocks import Blocks
from geodiag_jax.optimizers.non_euclidean import non_euclidean_gd


class Trainer:
    """Full-batch training that can be measured between steps."""

    def __init__(
        self, weights: dict[str, np.ndarray[Any, Any]], x: Any, y: Any, norm: str, lr: float
    ) -> None:
        batch = (jnp.asarray(x), jnp.asarray(y))
        self._params = {name: jnp.asarray(w) for name, w in weights.items()}
        transform = non_euclidean_gd(lr, norm)
        self._state = transform.init(self._params)

        def update(params: Any, state: Any) -> Any:
            gradients = jax.grad(_loss)(params, *batch)
            updates, state = transform.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self._update = jax.jit(update)
        self.problem = geodiag.problem(_loss, params=self._params, data=batch)

    def point(self) -> Blocks:
        """The parameters now."""
        return self._params

    def step(self) -> None:
        """One step of the optimizer."""
        self._params, self._state = self._update(self._params, self._state)


def _loss(params: dict[str, Any], x: Any, y: Any) -> Any:
    layers = [name.removesuffix(".weight") for name in params if name.endswith(".weight")]
    for i, layer in enumerate(sorted(layers, key=int)):
        x = (x if i == 0 else jnp.tanh(x)) @ params[f"{layer}.weight"].T + params[f"{layer}.bias"]
    return jnp.mean(jnp.sum((x - y) ** 2, axis=1))
