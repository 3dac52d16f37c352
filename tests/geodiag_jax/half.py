"""float16 in JAX: XLA does not compute with it on processors without F16C.

Nor with floats of 8 bits, which it converts by way of float16.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest


def _is_computed() -> bool:
    try:
        jax.jit(lambda x: 2 * x)(jnp.ones(1, jnp.float16)).block_until_ready()
    except jax.errors.JaxRuntimeError:
        return False
    return True


needs_float16 = pytest.mark.skipif(
    not _is_computed(), reason="JAX itself has no float16 on this processor"
)
