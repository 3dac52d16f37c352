"""What is run: every method on every model, with a learning rate and a length that reach the edge.

A cell's key holds a digest of all its settings, so a result is never taken for another's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from geodiag.errors import ArgumentError


@dataclass(frozen=True)
class Method:
    """Steepest descent in a norm: −lr·‖g‖*·lmo(g), or −lr·lmo(g) if normalized.

    Or an ``optimizer`` as people use it, whose threshold is not known or does not apply. The norm
    is then its own, and "by hand" its threshold is taken to be that of the descent.
    """

    key: str
    title: str
    norm: str  # a registered name; "preconditioned": with the P of training.preconditioner
    normalized: bool = False
    optimizer: str = ""  # by the name that the trainers know it by
    options: Mapping[str, Any] = field(default_factory=dict)  # under torch's names, and "clip"
    batch: int = 0  # examples in a mini-batch; 0: the full batch

    @property
    def shows_top_eigenvalue(self) -> bool:
        """Whether λ_max is plotted with S: in norms where the two are of different sizes."""
        return self.norm in ("linf", "spectral")


METHODS = {
    m.key: m
    for m in (
        Method("gd", "gradient descent", "l2"),
        Method("normalized-gd", "normalized GD", "l2", True),
        Method("preconditioned-gd", "preconditioned GD", "preconditioned"),
        Method("normalized-preconditioned-gd", "normalized preconditioned GD",
               "preconditioned", True),
        Method("linf-descent", "ℓ∞ descent", "linf"),
        Method("signgd", "SignGD (normalized ℓ∞ descent)", "linf", True),
        Method("block-cd", "block coordinate descent", "block"),
        Method("normalized-block-cd", "normalized block coordinate descent", "block", True),
        Method("spectral-gd", "spectral GD", "spectral"),
        Method("muon", "Muon without momentum (normalized spectral GD)", "spectral", True),
        Method("muon-momentum", "Muon, momentum 0.95, decay 0.1", "muon", True, "Muon",
               {"momentum": 0.95, "weight_decay": 0.1}),
        Method("lion", "Lion, decay 0.1", "linf", True, "Lion",
               {"betas": (0.9, 0.99), "weight_decay": 0.1}),
        Method("adamw-clipped", "AdamW, gradient clipped by norm", "preconditioned", False, "AdamW",
               {"betas": (0.9, 0.999), "weight_decay": 0.01, "clip": 0.01}),
        Method("sgd-batches", "SGD, mini-batches of 10", "l2", False, "SGD", batch=10),
    )
}  # fmt: skip
MODELS = {
    "mlp": "MLP, digits, squared error",
    "cnn": "CNN, digits, squared error",
    "transformer": "transformer, characters, cross-entropy",
}


@dataclass(frozen=True)
class Training:
    """A learning rate, a number of steps, and how many of these are measured."""

    lr: float
    steps: int
    measurements: int = 50


# Found by trial: the largest part of each run is progressive sharpening, its end is at the edge.
# Optimizers as people use them learn digits alone; more measurements, for ζ is noisier there.
TRAININGS = {
    ("gd", "mlp"): Training(0.2, 1200),
    ("normalized-gd", "mlp"): Training(0.01, 1500),
    ("preconditioned-gd", "mlp"): Training(0.2, 1200),
    ("normalized-preconditioned-gd", "mlp"): Training(0.01, 1500),
    ("linf-descent", "mlp"): Training(3e-4, 900),
    ("signgd", "mlp"): Training(5e-4, 900),
    ("block-cd", "mlp"): Training(0.55, 1500, 40),
    ("normalized-block-cd", "mlp"): Training(0.01, 2500, 40),
    ("spectral-gd", "mlp"): Training(0.0155, 600),
    ("muon", "mlp"): Training(0.005, 900),
    ("gd", "cnn"): Training(0.15, 700),
    ("normalized-gd", "cnn"): Training(0.015, 700),
    ("preconditioned-gd", "cnn"): Training(0.15, 900),
    ("normalized-preconditioned-gd", "cnn"): Training(0.015, 700),
    ("linf-descent", "cnn"): Training(5e-4, 400),
    ("signgd", "cnn"): Training(5e-4, 600),
    ("block-cd", "cnn"): Training(0.3, 1100, 30),
    ("normalized-block-cd", "cnn"): Training(0.05, 500, 30),
    ("spectral-gd", "cnn"): Training(0.013, 500),
    ("muon", "cnn"): Training(0.005, 600),
    ("gd", "transformer"): Training(0.1, 500),
    ("normalized-gd", "transformer"): Training(0.03, 450),
    ("preconditioned-gd", "transformer"): Training(0.1, 500),
    ("normalized-preconditioned-gd", "transformer"): Training(0.03, 450),
    ("linf-descent", "transformer"): Training(6e-5, 300),
    ("signgd", "transformer"): Training(6e-4, 420),
    ("block-cd", "transformer"): Training(0.2, 1000, 25),
    ("normalized-block-cd", "transformer"): Training(0.03, 700, 25),
    ("spectral-gd", "transformer"): Training(0.003, 210),
    ("muon", "transformer"): Training(0.006, 350),
    ("muon-momentum", "mlp"): Training(0.005, 1200, 150),
    ("lion", "mlp"): Training(0.001, 1000, 150),
    ("adamw-clipped", "mlp"): Training(0.003, 900, 180),
    ("sgd-batches", "mlp"): Training(0.1, 2000, 250),
}
# Part of every key: raise it when what is recorded, the models, or a method's options change.
VERSION = 2


@dataclass(frozen=True)
class Cell:
    """One run: all that its outcome depends on."""

    framework: str
    method: str
    model: str
    lr: float
    steps: int
    measurements: int
    seed: int
    data: str  # a digest of the data and of the first weights
    version: int = VERSION

    @property
    def key(self) -> str:
        """A file name: readable, and different for different settings."""
        settings = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        return f"{self.framework}-{self.model}-{self.method}-{digest}"

    @property
    def every(self) -> int:
        """The number of steps between two measurements.

        It is odd: with an even one only one side of an oscillation of period two would be seen.
        """
        return max(1, self.steps // self.measurements) | 1


def chosen(kind: str, names: Sequence[str] | None, known: Mapping[str, object]) -> list[str]:
    """``names`` in the order of ``known``; all of them for None.

    Raises:
        ArgumentError: a name is not known.
    """
    unknown = [n for n in names or [] if n not in known]
    if unknown:
        raise ArgumentError(f"unknown {kind}", got=", ".join(unknown), do=f"use {[*known]}")
    return [n for n in known if names is None or n in names]
