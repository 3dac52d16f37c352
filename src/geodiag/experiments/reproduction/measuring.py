"""One cell: train, and every few steps measure S, the step taken, and what checks the two.

Beside the fields of a :class:`geodiag.Record`, a row holds

    lambda_max       the Euclidean sharpness, for ℓ∞ and spectral methods
    identity         |ΔL + η(1 − ηD/2)‖g‖*²| / (η‖g‖*²) of unnormalized steps; 0 in exact arithmetic
    quadrature       D once more, from Hessian-vector products alone:
                     2∫₀¹ (1 − t)⟨s, H(w + ts)s⟩dt / ‖s‖², by Gauss-Legendre; on some steps
    quadrature_error how far doubling the points still moved it, relative
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from geodiag.blocks import Blocks, add, axpy, dot, subtract, to_numpy
from geodiag.directional import directional_smoothness
from geodiag.experiments.reproduction.cells import METHODS, Cell
from geodiag.norms import Norm, Preconditioned
from geodiag.optimizers.thresholds import threshold
from geodiag.oracles import CountingOracle, Oracle, Problem
from geodiag.problems import as_norm
from geodiag.records import Record
from geodiag.sharpness import sharpness

QUADRATURE_SAMPLES = 4  # of a run
POINTS = 8
# Of the residual, for eigenvalues; the error of the value is of the order of its square.
RTOL = 0.02


class Trainer(Protocol):
    """What an adapter supplies."""

    problem: Problem

    def descend(self, norm: Norm, lr: float, normalized: bool) -> None:
        """The optimizer of the steps from here on."""

    def point(self) -> Blocks:
        """The parameters now."""

    def step(self) -> None:
        """One step of the optimizer."""


def preconditioner(gradient: Blocks) -> dict[str, np.ndarray[Any, Any]]:
    """The fixed diagonal P = (|g₀| + m)/(2m), with m the mean of |g₀| at the start of training.

    As Adam's √v̂ + ε after its first step, with ε = m, and scaled so that P is 1 on average.
    """
    size = {name: np.abs(to_numpy(g)) for name, g in gradient.items()}
    m = sum(float(a.sum()) for a in size.values()) / sum(a.size for a in size.values())
    return {name: (a + m) / (2 * m) for name, a in size.items()}


def geometry(norm: str, gradient: Blocks) -> Norm:
    """The norm of a name; the preconditioned one with its P."""
    if norm == "preconditioned":
        return Preconditioned(preconditioner(gradient))
    return as_norm(norm)


def measured(cell: Cell, trainer: Trainer) -> Iterator[tuple[Record, dict[str, float]]]:
    """Train to the end; a record and its further numbers for every measured step.

    Raises:
        NonFiniteError: training diverged.
    """
    method = METHODS[cell.method]
    norm = geometry(method.norm, trainer.problem.at(trainer.point()).gradient())
    trainer.descend(norm, cell.lr, method.normalized)
    warm = _Warm(norm, None if method.shows_top_eigenvalue else RTOL)
    count = math.ceil(cell.steps / cell.every)
    integrated = set(np.linspace(0, count - 1, QUADRATURE_SAMPLES).astype(int) * cell.every)
    for step in range(cell.steps):
        if step % cell.every:
            trainer.step()
            continue
        began = time.perf_counter()
        before = trainer.point()
        oracle = CountingOracle(trainer.problem.at(before))
        known, extra = warm.measure(oracle)
        trainer.step()
        moved = subtract(trainer.point(), before)
        d = float(directional_smoothness(oracle, moved, norm))
        dual = known["dual_norm"]
        if not method.normalized:
            extra["identity"] = identity(oracle, moved, dual, d, cell.lr)
        if step in integrated:
            extra |= integral(trainer.problem, before, norm, moved)
        edge = float(
            threshold(cell.lr, normalized=True, dual_norm=dual)
            if method.normalized
            else threshold(cell.lr)
        )
        record = Record(
            step,
            lr=cell.lr,
            directional_smoothness=d,
            curvature=float(directional_smoothness(oracle, moved, norm, kind="curvature")),
            threshold=edge,
            ratio=known["sharpness"] / edge,
            num_hvps=oracle.num_hvps,
            seconds=time.perf_counter() - began,
            **known,
        )
        yield record, extra


class _Warm:
    """S, and λ_max where it is shown, each going on from its last measurement.

    Args:
        rtol: of S in norms made of eigenvalues; None: S is sought by ascent, and λ_max is shown.
    """

    def __init__(self, norm: Norm, rtol: float | None) -> None:
        self._norm, self._rtol = norm, rtol
        self._last: Any = None
        self._top: Any = None

    def measure(self, oracle: CountingOracle) -> tuple[dict[str, Any], dict[str, float]]:
        """Fields of the record, and the further numbers."""
        self._last = sharpness(oracle, self._norm, start=self._last, rtol=self._rtol)
        known = {
            "loss": float(oracle.loss()),
            "sharpness": self._last.value,
            "bound": self._last.bound.name,
            "dual_norm": self._last.dual_norm,
        }
        if self._rtol is not None:
            return known, {}
        self._top = sharpness(oracle, "l2", start=self._top, rtol=RTOL)
        return known, {"lambda_max": self._top.value}


def identity(oracle: Oracle, moved: Blocks, dual_norm: float, d: float, lr: float) -> float:
    """By how much ΔL = −η(1 − ηD/2)‖g‖*² is missed, in units of η‖g‖*²."""
    change = float(oracle.loss_at(add(oracle.point(), moved))) - float(oracle.loss())
    scale = lr * dual_norm**2
    return abs(change + (1 - lr * d / 2) * scale) / scale


def integral(problem: Problem, here: Blocks, norm: Norm, moved: Blocks) -> dict[str, float]:
    """D by quadrature, and its relative change when the points are doubled."""
    coarse, fine = (_quadrature(problem, here, norm, moved, n) for n in (POINTS, 2 * POINTS))
    return {"quadrature": fine, "quadrature_error": abs(fine - coarse) / abs(fine)}


def _quadrature(problem: Problem, here: Blocks, norm: Norm, s: Blocks, points: int) -> float:
    nodes, weights = np.polynomial.legendre.leggauss(points)  # on [-1, 1]
    total = 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        oracle = problem.at(axpy(float(t), s, here))
        total += weight * (1 - t) * float(dot(s, oracle.hvp(s)))
        problem.close()  # frees the graph of this point
    length = float(norm.bind(oracle.space).value(s))
    return 2 * total / length**2
