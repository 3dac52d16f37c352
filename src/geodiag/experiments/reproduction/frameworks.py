"""What the experiments need of a framework: its packages, and the trainer of its adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module, util
from typing import Any, Protocol

from geodiag.blocks import Blocks
from geodiag.errors import ArgumentError, MissingDependency, shown
from geodiag.experiments.reproduction.data import Task
from geodiag.norms import Norm
from geodiag.oracles import Oracle, Problem
from geodiag.records import Record

# What the experiments import, by framework: all of it optional for geodiag itself.
PACKAGES = {
    "torch": ("torch", "sklearn", "rich", "matplotlib"),
    "jax": ("jax", "optax", "sklearn", "rich", "matplotlib"),
}


class Trainer(Protocol):
    """Training that can be measured between steps; full batch, if no batch is set."""

    problem: Problem  # on all data

    def set_optimizer(self, norm: Norm, lr: float, normalized: bool) -> None:
        """Set the optimizer of the following steps."""

    def observe(
        self, optimizer: str, lr: float, options: Mapping[str, Any], every: int
    ) -> Sequence[Record]:
        """Set an optimizer as people use it, and measure by a Monitor; its records, as they come.

        Muon moves the matrices, and nothing moves the other parameters.
        """

    def set_batch(self, chosen: Any) -> None:
        """Set the examples that the following steps are taken on, by their numbers."""

    def on_batch(self, point: Blocks) -> Oracle:
        """The loss and the gradient of these examples at a point."""

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
