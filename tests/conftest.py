"""Fixtures of the whole suite: ``xp``, one array namespace after another, the strictest included.

The formulas that tests compare with are in :mod:`tests.truth`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests import perturbation
from tests.suites import XLA_FLAGS

BACKENDS = {
    "numpy": "array_api_compat.numpy",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
    "strict": "array_api_strict",
}
EAGER = [name for name in BACKENDS if name != "jax"]  # those that compile nothing

os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)

try:
    import jax
except ImportError:
    jax = None
else:
    # The tests' own process may compute in float64; the library never flips this for its users.
    jax.config.update("jax_enable_x64", True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--perturb",
        type=int,
        metavar="SEED",
        help="perturb the tests' random draws by a relative 1e-14 (see tests/perturbation.py)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Frameworks and compiled programs are many objects, and looking through them takes long.
    gc.set_threshold(20_000, 20, 20)
    seed = config.getoption("--perturb")
    if seed is not None:
        os.environ[perturbation.VARIABLE] = str(seed)  # for the processes that tests start
        with contextlib.suppress(ImportError):
            importlib.import_module("torch")
        perturbation.install(seed)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.config.getoption("--perturb") is not None:
        perturbation.single = "float32" in item.path.read_text(encoding="utf-8")


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
