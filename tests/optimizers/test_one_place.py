"""The core alone knows optimizers: what a new family touches, and that adapters only read state."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import geodiag_jax
import geodiag_jax.optimizers.readers as jax_readers
import geodiag_torch.optimizers.readers as torch_readers
from geodiag.optimizers import families, normalized
from geodiag.optimizers.slots import Family
from geodiag_jax.pytree import read
from tests.geodiag_torch.optimizers import Quadratic, geometry, one_step

SRC = Path(__file__).parents[2] / "src"
CORE, NORMALIZED = "geodiag/optimizers/families.py", "geodiag/optimizers/normalized.py"
TORCH = "geodiag_torch/optimizers/readers.py"
JAX = "geodiag_jax/optimizers/readers.py"

# All files that name a family.
TOUCHED = {
    "GradientDescent": {CORE, TORCH, JAX},
    "Adam": {CORE, TORCH, JAX},
    "RMSprop": {CORE, TORCH, JAX},
    "SignDescent": {NORMALIZED, TORCH},
    "LionDescent": {NORMALIZED, TORCH, JAX},
    "NAdam": {CORE, TORCH},
    "AdEMAMix": {CORE, TORCH, JAX},
    "QHM": {CORE, TORCH},
    "MuonDescent": {NORMALIZED, TORCH, JAX},
    "SteepestDescent": {CORE, TORCH},
}


def files(folder: str) -> dict[str, ast.AST]:
    found = sorted((SRC / folder).rglob("*.py"))
    return {f.relative_to(SRC).as_posix(): ast.parse(f.read_text("utf-8")) for f in found}


def names_in(tree: ast.AST) -> set[str]:
    """The families that a file defines, or imports from the core."""
    found = {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("geodiag.optimizers"):
            found |= {alias.name for alias in n.names}
    return found


def test_a_family_is_in_one_core_file_and_one_reader_file_per_framework():
    listed = {name: set() for name in TOUCHED}
    for file, tree in files(".").items():
        for name in names_in(tree) & set(TOUCHED):
            listed[name].add(file)
    assert listed == TOUCHED


def test_every_family_is_listed():
    members = [c for module in (families, normalized) for c in vars(module).values()]
    found = [c for c in members if inspect.isclass(c) and issubclass(c, Family)]
    concrete = {c.__name__ for c in found if c.__name__[0] != "_"} - {"Family", "Quadratic"}
    assert concrete == set(TOUCHED)


def arithmetic(tree: ast.AST) -> list[str]:
    """What belongs to thresholds, radii and preconditioners: 2/η, 1 ± β, powers, roots, Update's
    fields. Where no threshold applies, an adapter may say so."""
    found = []
    for n in ast.walk(tree):
        if isinstance(n, ast.BinOp) and isinstance(n.left, ast.Constant):
            edge = isinstance(n.op, ast.Div) and n.left.value in (2, 2.0)
            if edge or (isinstance(n.op, (ast.Add, ast.Sub)) and n.left.value in (1, 1.0)):
                found.append(ast.unparse(n))
        elif isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow):
            found.append(ast.unparse(n))
        elif isinstance(n, ast.Call):
            called = ast.unparse(n.func).rpartition(".")[2]
            fields = {k.arg for k in n.keywords} - {"unknown"}
            if called in ("sqrt", "threshold", "muon_radius") or (called == "Update" and fields):
                found.append(ast.unparse(n))
    return found


PLANTED = ["2 / lr", "2.0 / lr", "1 + beta", "1 - beta", "v**0.5", "math.sqrt(rows / cols)",
           "geodiag.threshold(lr)", "Update(lr, momentum=beta)"]  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_planted_arithmetic_is_found(planted):
    assert arithmetic(ast.parse(f"def f():\n    return [{planted}]")) == [
        ast.unparse(ast.parse(planted))
    ]


@pytest.mark.parametrize("package", ["geodiag_torch", "geodiag_jax"])
def test_readers_hold_no_thresholds(package):
    found = {f: arithmetic(tree) for f, tree in files(f"{package}/optimizers").items()}
    assert len(found) >= 4
    constant = {"2 ** 31"}  # the last value of an optax step count
    assert {f: set(a) - constant for f, a in found.items() if set(a) - constant} == {}


def test_only_one_core_file_holds_the_formula_of_thresholds():
    trees = files("geodiag/optimizers").items()
    found = {f for f, tree in trees for a in arithmetic(tree) if "/ lr" in a}
    assert found == {"geodiag/optimizers/thresholds.py"}


class DiagonalNewton(families.Quadratic):
    """A family from outside: w⁺ = w − η g/c with a diagonal curvature c."""

    stateful = True

    def diagonal(self, slot):
        return slot.second_moment


LR = 0.1


class TorchNewton(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                c = self.state[p]["curvature"] = 1 + p**2
                p -= group["lr"] * p.grad / c


def read_torch_newton(e):
    return e.slot(DiagonalNewton(), second_moment=e.array("curvature"))


def test_a_family_is_added_in_torch_by_one_reader(monkeypatch):
    model = Quadratic()
    optimizer = TorchNewton(model.parameters(), LR)
    with pytest.raises(ValueError, match="TorchNewton is not known"):
        geometry(optimizer, model)
    monkeypatch.setitem(torch_readers.READERS, TorchNewton, read_torch_newton)
    g, step = one_step(optimizer, model)
    live, space = geometry(optimizer, model)
    moved = live.norm().bind(space).inverse_metric(g)
    for name, x in step.items():
        torch.testing.assert_close(x, -LR * moved[name], rtol=1e-12, atol=1e-14)
    assert float(live.update(0).threshold(None)) == pytest.approx(20.0)


class NewtonState(NamedTuple):
    nu: Any


def optax_newton() -> optax.GradientTransformation:
    def update(grads, state, params):
        nu = jax.tree_util.tree_map(lambda p: 1 + p**2, params)
        steps = jax.tree_util.tree_map(lambda g, c: -LR * g / c, grads, nu)
        return steps, NewtonState(nu)

    return optax.GradientTransformation(lambda params: NewtonState(params), update)


def read_optax_newton(e):
    return e.slot(DiagonalNewton(), second_moment=e.arrays["nu"])


def test_a_family_is_added_in_jax_by_one_reader(monkeypatch):
    params = {"a": jnp.arange(4.0), "b": jnp.ones((2, 3))}
    g = {"a": jnp.ones(4), "b": jnp.full((2, 3), -2.0)}
    transform = optax_newton()
    step, state = transform.update(g, transform.init(params), params)
    with pytest.raises(ValueError, match="is not known"):
        geodiag_jax.geometry(state, params, lr=LR)
    monkeypatch.setitem(jax_readers.READERS, NewtonState, read_optax_newton)
    norm, update = geodiag_jax.geometry(state, params, lr=LR)
    moved = norm.bind(read(params, None).space).inverse_metric(g)
    for name, x in step.items():
        np.testing.assert_allclose(x, -LR * moved[name], rtol=1e-12)
    assert float(update.threshold(None)) == pytest.approx(20.0)
