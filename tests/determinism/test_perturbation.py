"""``--perturb``: draws differ in their last bits from what they are, and in nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import perturbation
from tests.isolation.preloaded import Preloaded

ROOT = Path(__file__).parents[2]
DRAWS = """
import os, sys
sys.path.insert(0, root)
os.environ.pop(variable, None)
if seed is not None:
    os.environ[variable] = str(seed)
import jax, numpy as np, torch
from tests import perturbation
jax.config.update("jax_enable_x64", True)
perturbation.install_as_parent()
found = {"numpy": np.random.default_rng(0).standard_normal((2, 3))}
found["again"] = np.random.default_rng(0).standard_normal(6).reshape(2, 3)
found["one"] = np.full((), np.random.default_rng(0).normal())
for name, dtype in (("double", torch.float64), ("single", torch.float32)):
    torch.manual_seed(0)
    found[f"torch, {name}"] = torch.randn(500, dtype=dtype).numpy()
    bits = 8 * dtype.itemsize
    found[f"jax, {name}"] = jax.random.normal(jax.random.key(0), (500,), f"float{bits}")
torch.manual_seed(0)
found["weights"] = torch.nn.Linear(20, 20).weight.detach().numpy()
perturbation.single = True
torch.manual_seed(0)
found["torch, rounded"] = torch.randn(500, dtype=torch.float64).numpy()
np.savez(path, **found)
"""


@pytest.fixture(scope="module")
def draws(tmp_path_factory):
    """The draws of several interpreters."""
    asked = {"plain": None, "one": 1, "same": 1, "two": 2}
    interpreter, found = Preloaded("torch", "jax"), {}
    for name, seed in asked.items():
        folder = tmp_path_factory.mktemp("draws")
        told = {"root": str(ROOT), "variable": perturbation.VARIABLE, "seed": seed}
        told |= {"path": str(folder / "drawn.npz")}
        interpreter.run("".join(f"{k} = {v!r}\n" for k, v in told.items()) + DRAWS, folder)
        found[name] = dict(np.load(folder / "drawn.npz"))
    interpreter.close()
    return found


def test_draws_move_by_their_last_bits(draws):
    for name, x in draws["plain"].items():
        y, z = draws["one"][name], draws["two"][name]
        assert y.dtype == x.dtype
        rounded = name == "torch, rounded" or x.dtype == np.float32
        limit = 2.0**-22 if rounded else 1e-14
        assert np.max(np.abs(y - x) / np.abs(x)) <= limit * 1.01
        if x.size > 1:
            assert np.mean(x != y) > 0.3
            assert np.mean(y != z) > 0.3  # another seed


def test_equal_draws_stay_equal(draws):
    """Whatever their shape, and in another process."""
    one = draws["one"]
    assert np.array_equal(one["numpy"], one["again"])
    assert one["one"] == one["numpy"].flat[0]
    assert all(np.array_equal(x, draws["same"][name]) for name, x in one.items())


def test_what_is_rounded_to_float32_still_moves(draws):
    x, y = (draws[name]["torch, rounded"].astype("float32") for name in ("plain", "one"))
    assert np.mean(x != y) > 0.3
    assert np.max(np.abs(y - x) / np.abs(x)) < 3e-7
