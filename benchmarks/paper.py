"""Default cold S against the paper's Frank–Wolfe (5 restarts × 50 iterations, 255 products).

On the demo's digits MLP, for ℓ∞ and spectral descent, at the start, in the middle of the way to the
edge, and at the edge; the best value known comes from 40 long ascents and is the same for both.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import geodiag
from geodiag.demo import METHODS, digits, initial_weights
from geodiag.estimators import Ascent, FrankWolfe
from geodiag_torch.demo import Trainer

SEEDS = (0, 1, 2)
CHECKPOINTS = (("start", 0.0), ("sharpening", 0.05), ("middle", 0.5), ("edge", 1.0))


def run() -> None:
    """Print value and products of both, per norm and checkpoint."""
    print("\ndefault S, cold, against the paper's Frank–Wolfe; digits MLP (float32, torch)")
    heads = ("ours/paper", "ours/best", "paper/best", "HVPs", "HVPs paper", "time ratio")
    print(f"{'norm':10}{'checkpoint':12}{'seed':>5}" + "".join(f"{h:>12}" for h in heads))
    for norm in ("linf", "spectral"):
        table: dict[str, list[tuple[float, ...]]] = {}
        for seed in SEEDS:
            for checkpoint, problem in _checkpoints(norm, seed):
                row = _compare(problem, norm)
                table.setdefault(checkpoint, []).append(row)
                print(f"{norm:10}{checkpoint:12}{seed:5d}" + "".join(f"{v:12.3f}" for v in row))
        for checkpoint, rows in table.items():
            medians = [statistics.median(column) for column in zip(*rows, strict=True)]
            print(f"{norm:10}{checkpoint:12}{'med':>5}" + "".join(f"{v:12.3f}" for v in medians))


def _checkpoints(norm: str, seed: int) -> Any:
    method = METHODS[norm]
    x, y = digits()
    trainer = Trainer(initial_weights(seed), x, y, norm, method.lr)
    done = 0
    for name, fraction in CHECKPOINTS:
        while done < fraction * method.steps:
            trainer.step()
            done += 1
        yield name, trainer.problem


def _compare(problem: Any, norm: str) -> tuple[float, ...]:
    start = time.perf_counter()
    ours = geodiag.sharpness(problem, norm)
    middle = time.perf_counter()
    paper = geodiag.sharpness(problem, norm, estimator=FrankWolfe())
    end = time.perf_counter()
    long = geodiag.sharpness(
        problem, norm, estimator=Ascent(starts=40), max_hvps=4000, rtol=1e-6, seed=99
    )
    best = max(ours.value, paper.value, long.value)
    return (
        ours.value / paper.value,
        ours.value / best,
        paper.value / best,
        float(ours.num_hvps),
        float(paper.num_hvps),
        (middle - start) / (end - middle),
    )
