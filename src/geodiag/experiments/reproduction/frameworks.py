"""What the experiments need of a framework: its packages, and the trainer of its adapter."""

from __future__ import annotations

from importlib import import_module, util
from typing import Protocol

from geodiag.blocks import Blocks
from geodiag.errors import ArgumentError, MissingDependency, shown
from geodiag.experiments.reproduction.data import Task
from geodiag.norms import Norm
from geodiag.oracles import Problem

# What the experiments import, by framework: all of it optional for geodiag itself.
PACKAGES = {
    "torch": ("torch", "sklearn", "rich", "matplotlib"),
    "jax": ("jax", "optax", "sklearn", "rich", "matplotlib"),
}


class Trainer(Protocol):
    """Full-batch training that can be measured between steps."""

    problem: Problem

    def set_optimizer(self, norm: Norm, lr: float, normalized: bool) -> None:
        """Set the optimizer of the following steps."""

    def point(self) -> Blocks:
        """The current parameters."""

    def step(self) -> None:
        """One step of the optimizer."""


def check_installed(framework: str, what: str) -> None:
    """Raise unless ``framework`` is known and every package that ``what`` imports is installed."""
    if framework not in PACKAGES:
        raise ArgumentError(
            "unknown framework", got=shown(framework), do=f"use one of {[*PACKAGES]}"
        )
    missing = [name for name in PACKAGES[framework] if util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"{what} needs packages that are not installed",
            got=f"no {', '.join(missing)}",
            do=f'pip install "geodiag[{framework},plot,demo]"',
        )


def make_trainer(framework: str, model: str, task: Task) -> Trainer:
    """The adapter's trainer of a model, in the precision of the task's arrays."""
    module = import_module(f"geodiag_{framework}.experiments")
    trainer: Trainer = module.Trainer(model, task.weights, task.x, task.y)
    return trainer
