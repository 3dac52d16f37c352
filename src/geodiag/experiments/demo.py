"""``geodiag demo``: watch three optimizers reach the edge of stability on real data.

A tanh MLP learns scikit-learn's digits by full-batch gradient descent in ℓ2, ℓ∞ and spectral
geometry. In each, the sharpness measured in the optimizer's own norm rises (progressive sharpening)
until it meets 2/lr, and hovers there; so does the directional smoothness of the steps taken.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from importlib import import_module, util
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from geodiag.blocks import Blocks, subtract
from geodiag.directional import directional_smoothness
from geodiag.errors import ArgumentError, MissingDependency, shown
from geodiag.optimizers.thresholds import threshold
from geodiag.problems import as_norm
from geodiag.sharpness import sharpness

# What the demo imports, by framework: all of it optional for geodiag itself.
PACKAGES = {
    "torch": ("torch", "sklearn", "rich", "matplotlib"),
    "jax": ("jax", "optax", "sklearn", "rich", "matplotlib"),
}
WIDTHS = (64, 24, 24, 10)
EXAMPLES = 500
MEASUREMENTS = 60


@dataclass(frozen=True)
class Method:
    """An optimizer to show: its norm, and a learning rate and length that reach the edge."""

    title: str
    norm: str
    lr: float
    steps: int


METHODS = {
    m.norm: m
    for m in (
        Method("gradient descent", "l2", 0.2, 1500),
        Method("ℓ∞ descent", "linf", 3e-4, 900),
        Method("spectral descent", "spectral", 0.0165, 900),
    )
}

Row = dict[str, Any]


def run(
    framework: str = "torch",
    norms: list[str] | None = None,
    steps: int | None = None,
    out: Path = Path("geodiag-demo"),
    seed: int = 0,
) -> int:
    """Train, measure, and write ``demo.jsonl`` and ``demo.png`` to ``out``; returns 0.

    Raises:
        ArgumentError: an unknown framework or norm, or fewer than 10 steps.
        MissingDependency: the framework, scikit-learn, rich or matplotlib is not installed.
    """
    methods = _methods(norms, steps)
    check_installed(framework, "the demo")
    trainer = import_module(f"geodiag_{framework}.demo").Trainer
    rich, plotting = import_module("rich.progress"), import_module("geodiag.report.plotting")
    x, y = digits()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    columns = (*rich.Progress.get_default_columns(), rich.TextColumn("{task.fields[now]}"))
    with rich.Progress(*columns) as progress, (out / "demo.jsonl").open("w") as log:
        for method in methods:
            task = progress.add_task(f"{method.title:18}", total=method.steps, now="")
            for row in _train(trainer(initial_weights(seed), x, y, method.norm, method.lr), method):
                row["framework"] = framework
                rows.append(row)
                log.write(json.dumps(row) + "\n")
                log.flush()
                now = f"loss {row['loss']:.4f}  lr·S/2 {row['ratio']:.2f}"
                progress.update(task, completed=row["step"] + 1, now=now)
            progress.update(task, completed=method.steps)
    plotting.plot_demo(rows, out / "demo.png")
    _print_table(methods, rows, out)
    return 0


def late_ratio(rows: list[Row], steps: int) -> float:
    """The median of lr·S/2 over the last fifth of the steps."""
    return float(np.median([r["ratio"] for r in rows if r["step"] >= 0.8 * steps]))


def _train(trainer: Any, method: Method) -> Any:
    """Measure, step, measure the step; every few steps."""
    every = max(1, method.steps // MEASUREMENTS)
    edge = threshold(method.lr)
    last = None
    for step in range(method.steps):
        if step % every:
            trainer.step()
            continue
        began = time.perf_counter()
        before: Blocks = trainer.point()
        oracle = trainer.problem.at(before)
        last = sharpness(oracle, method.norm, start=last)
        norm = as_norm(method.norm).bind(oracle.space)
        row = {
            "method": method.title,
            "norm": method.norm,
            "step": step,
            "loss": float(oracle.loss()),
            "lr": method.lr,
            "sharpness": last.value,
            "bound": last.bound.name,
            "dual_norm": float(norm.dual(oracle.gradient())),
            "threshold": float(edge),
            "ratio": last.value / edge,
            "num_hvps": last.num_hvps,
        }
        measured = time.perf_counter() - began
        trainer.step()
        began = time.perf_counter()
        moved = subtract(trainer.point(), before)
        d = directional_smoothness(oracle, moved, method.norm)
        row["directional_smoothness"] = float(d)
        row["seconds"] = measured + time.perf_counter() - began
        yield row


def _methods(norms: list[str] | None, steps: int | None) -> list[Method]:
    unknown = [n for n in norms or [] if n not in METHODS]
    if unknown:
        raise ArgumentError(
            "the demo does not know this norm", got=", ".join(unknown), do=f"use {[*METHODS]}"
        )
    if steps is not None and steps < 10:
        raise ArgumentError("the demo needs at least 10 steps", got=steps)
    chosen = [METHODS[n] for n in dict.fromkeys(norms)] if norms else list(METHODS.values())
    return [Method(m.title, m.norm, m.lr, steps or m.steps) for m in chosen]


def check_installed(framework: str, what: str) -> None:
    """Raise unless ``framework`` is known, and all that ``what`` draws on is there."""
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


def digits() -> tuple[Any, Any]:
    """500 digits, standardised, and one-hot targets, in float32."""
    data = import_module("sklearn.datasets").load_digits()
    x = np.asarray(data.data[:EXAMPLES], dtype=np.float64)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-8)
    y = np.eye(10)[data.target[:EXAMPLES]]
    return x.astype(np.float32), y.astype(np.float32)


def initial_weights(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Initial weights, the same in every framework: uniform in ±1/√fan_in."""
    rng = np.random.default_rng(seed)
    found = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(WIDTHS)):
        r = 1.0 / math.sqrt(fan_in)
        found[f"{2 * i}.weight"] = rng.uniform(-r, r, (fan_out, fan_in)).astype(np.float32)
        found[f"{2 * i}.bias"] = rng.uniform(-r, r, fan_out).astype(np.float32)
    return found


def _print_table(methods: list[Method], rows: list[Row], out: Path) -> None:
    print("\nmethod                lr  steps    loss   S: first → last     2/lr  late lr·S/2")
    for m in methods:
        own = [r for r in rows if r["norm"] == m.norm]
        rise = f"{own[0]['sharpness']:.4g} → {own[-1]['sharpness']:.4g}"
        print(
            f"{m.title:16} {m.lr:>7g} {m.steps:>6} {own[-1]['loss']:>7.4f} {rise:>17}"
            f" {2 / m.lr:>8.4g} {late_ratio(own, m.steps):>12.3f}"
        )
    print("late: the median over the last fifth of the steps; the edge is at 1")
    print(f"records: {out / 'demo.jsonl'}\npicture: {out / 'demo.png'}")
