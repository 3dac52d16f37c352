"""The training loop: every few steps, measure S, take one step, and measure along it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from geodiag.blocks import Blocks, dot, subtract, to_numpy
from geodiag.directional import directional_smoothness
from geodiag.experiments.reproduction.cells import METHODS, Cell
from geodiag.experiments.reproduction.frameworks import Trainer
from geodiag.norms import Norm, Preconditioned
from geodiag.optimizers.thresholds import threshold
from geodiag.oracles import CountingOracle, Oracle
from geodiag.problems import as_norm
from geodiag.records import Record
from geodiag.sharpness import sharpness


@dataclass(frozen=True)
class Step:
    """A measured step: its record, the oracle at w, the norm, and w⁺ − w."""

    record: Record
    oracle: CountingOracle
    norm: Norm
    moved: Blocks


def train(cell: Cell, trainer: Trainer, rtol: float | None = None) -> Iterator[Step]:
    """Train to the end. Each search for S, to the tolerance ``rtol``, starts from the last result.

    Yields:
        Step: every ``cell.every``-th.

    Raises:
        NonFiniteError: training diverged.
    """
    method = METHODS[cell.method]
    norm = geometry(method.norm, trainer.problem.at(trainer.point()).gradient())
    trainer.set_optimizer(norm, cell.lr, method.normalized)
    last: Any = None
    for step in range(cell.steps):
        if step % cell.every:
            trainer.step()
            continue
        began = time.perf_counter()
        before = trainer.point()
        oracle = CountingOracle(trainer.problem.at(before))
        last = sharpness(oracle, norm, start=last, rtol=rtol)
        dual = last.dual_norm if method.normalized else None
        edge = threshold(cell.lr, normalized=method.normalized, dual_norm=dual)
        loss = float(oracle.loss())
        trainer.step()
        moved = subtract(trainer.point(), before)
        d = float(directional_smoothness(oracle, moved, norm))
        descent = descent_per_square(oracle, norm, moved)
        record = Record(
            step,
            loss=loss,
            lr=cell.lr,
            sharpness=last.value,
            bound=last.bound.name,
            dual_norm=last.dual_norm,
            directional_smoothness=d,
            threshold=float(edge),
            ratio=last.value / edge,
            realized_edge=d / descent,
            timing=descent / edge,
            num_hvps=oracle.num_hvps,
            seconds=time.perf_counter() - began,
        )
        yield Step(record, oracle, norm, moved)


def descent_per_square(oracle: Oracle, norm: Norm, s: Blocks) -> float:
    """−2⟨g, s⟩/‖s‖², by which D is divided for ζ; NaN where the step does not descend."""
    descent = -2 * float(dot(oracle.gradient(), s))
    return descent / float(norm.bind(oracle.space).value(s)) ** 2 if descent > 0 else math.nan


def preconditioner(gradient: Blocks) -> dict[str, np.ndarray[Any, Any]]:
    """The fixed diagonal P = (|g₀| + m)/(2m), with m the mean of |g₀| at the start of training.

    As Adam's √v̂ + ε after its first step, with ε = m, and scaled so that P is 1 on average.
    """
    size = {name: np.abs(to_numpy(g)) for name, g in gradient.items()}
    m = sum(float(a.sum()) for a in size.values()) / sum(a.size for a in size.values())
    return {name: (a + m) / (2 * m) for name, a in size.items()}


def geometry(norm: str, gradient: Blocks) -> Norm:
    """The norm registered under a name; the preconditioned one with the P of the gradient."""
    if norm == "preconditioned":
        return Preconditioned(preconditioner(gradient))
    return as_norm(norm)
