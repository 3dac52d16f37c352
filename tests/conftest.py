"""Fixtures of the whole suite: ``xp``, one array namespace after another, the strictest included.

The formulas that tests compare with are in :mod:`tests.truth`.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

BACKENDS = {
    "numpy": "array_api_compat.numpy",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
    "strict": "array_api_strict",
}

# Compiling takes most of the tests' time, and the compiled code little of it. The older emitters
# compile in half the time of the newer; set XLA_FLAGS yourself to test with what XLA does unasked.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

try:
    import jax
except ImportError:
    jax = None
else:
    # The tests' own process may compute in float64; the library never flips this for its users.
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def old_things_frozen() -> Iterator[None]:
    """For modules that look for garbage again and again: what was there before is not looked
    through, which takes a second, for frameworks and compiled programs are many objects."""
    gc.collect()  # or the garbage of earlier modules would stay
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=BACKENDS)
def xp(request: pytest.FixtureRequest) -> Any:
    """An array namespace: NumPy, PyTorch, JAX or array-api-strict."""
    pytest.importorskip(request.param if request.param != "strict" else "array_api_strict")
    return importlib.import_module(BACKENDS[request.param])


@pytest.fixture(params=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> str:
    """Both precisions that a measurement may be made in."""
    return str(request.param)
