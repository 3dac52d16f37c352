"""One cell of the reproduction: each measured step, and checks of S and of D along it.

The extras of each :class:`geodiag.Record` are

    lambda_max       the Euclidean sharpness, for ℓ∞ and spectral methods
    identity         |ΔL + η(1 − ηD/2)‖g‖*²| / (η‖g‖*²) of unnormalized steps; 0 in exact arithmetic
    quadrature       D from Hessian-vector products alone, on some of the steps:
                     2∫₀¹ (1 − t)⟨s, H(w + ts)s⟩dt / ‖s‖², by Gauss-Legendre quadrature
    quadrature_error its relative change when the number of points is doubled
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from geodiag.blocks import Blocks, add, axpy, dot
from geodiag.directional import directional_smoothness
from geodiag.experiments.reproduction.cells import METHODS, Cell
from geodiag.experiments.reproduction.frameworks import Trainer
from geodiag.experiments.reproduction.training import train
from geodiag.norms import Norm
from geodiag.oracles import Oracle, Problem
from geodiag.records import Record
from geodiag.sharpness import sharpness

QUADRATURE_SAMPLES = 4  # of a run
POINTS = 8
# Of the residual, for eigenvalues; the error of the value is of the order of its square.
RTOL = 0.02


def measured(cell: Cell, trainer: Trainer) -> Iterator[Record]:
    """Train to the end.

    Yields:
        Record: each measured step.

    Raises:
        NonFiniteError: training diverged.
    """
    method = METHODS[cell.method]
    show_top = method.shows_top_eigenvalue
    top: Any = None
    count = math.ceil(cell.steps / cell.every)
    integrated = set(np.linspace(0, count - 1, QUADRATURE_SAMPLES).astype(int) * cell.every)
    for taken in train(cell, trainer, None if show_top else RTOL):
        began = time.perf_counter()
        record, oracle, norm, moved = taken.record, taken.oracle, taken.norm, taken.moved
        d = record.directional_smoothness
        extra: dict[str, float] = {}
        if show_top:
            top = sharpness(oracle, "l2", start=top, rtol=RTOL)
            extra["lambda_max"] = top.value
        if not method.normalized:
            extra["identity"] = identity(oracle, moved, record.dual_norm, d, cell.lr)
        curvature = float(directional_smoothness(oracle, moved, norm, kind="curvature"))
        if record.step in integrated:
            extra |= integral(trainer.problem, oracle.point(), norm, moved)
        seconds = record.seconds + time.perf_counter() - began
        yield replace(
            record,
            curvature=curvature,
            occupation=curvature / record.sharpness if record.sharpness else math.nan,
            num_hvps=oracle.num_hvps,
            seconds=seconds,
            extras=extra,
        )


def identity(oracle: Oracle, moved: Blocks, dual_norm: float, d: float, lr: float) -> float:
    """The deviation from ΔL = −η(1 − ηD/2)‖g‖*², in units of η‖g‖*²."""
    change = float(oracle.loss_at(add(oracle.point(), moved))) - float(oracle.loss())
    scale = lr * dual_norm**2
    return abs(change + (1 - lr * d / 2) * scale) / scale


def integral(problem: Problem, here: Blocks, norm: Norm, moved: Blocks) -> dict[str, float]:
    """D by quadrature, and its relative change when the number of points is doubled."""
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
