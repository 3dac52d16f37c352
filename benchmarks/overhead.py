"""What a monitor costs a training run: the same steps with and without one, in turn."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

import geodiag_torch
from benchmarks.cases import build_wide
from benchmarks.problems import MODELS, TRAININGS, Training, build
from benchmarks.report import spread, table
from geodiag_torch import NonEuclideanGD

BUDGET = 0.05
# Learning rates, and steps: for the digits MLP as many as it takes to the edge.
RUNS = {
    ("mlp", "l2"): Training(0.2, 900),
    ("mlp", "linf"): TRAININGS["mlp", "linf"],
    ("mlp", "spectral"): TRAININGS["mlp", "spectral"],
    ("wide", "l2"): Training(0.1, 200),
    ("wide", "linf"): Training(1e-5, 200),
    ("wide", "spectral"): Training(0.01, 100),
}


def run(quick: bool) -> None:
    """Print one row per model and norm, in float32, full batch; ``quick``: the digits MLP alone."""
    torch.set_num_threads(1)
    rounds = 2 if quick else 5
    rows = []
    for (model, norm), training in RUNS.items():
        plans = [("every=10", {"every": 10}, training)]
        if model == "mlp":
            longer = Training(training.lr, 5 * training.steps)
            plans.append((f"budget={BUDGET}", {"every": 1, "budget": BUDGET}, longer))
        elif quick:
            continue
        rows += [
            [model, norm, label, *_compare(model, norm, options, plan, rounds)]
            for label, options, plan in plans
        ]
    heads = ["model", "norm", "monitor", "ms a step", "overhead, in steps", "share, own account"]
    table(
        "Training with a monitor attached, against training without",
        [*heads, "records", "HVPs a record"],
        rows,
    )


def _compare(
    model: str, norm: str, options: dict[str, Any], training: Training, rounds: int
) -> list[Any]:
    overheads, plain, shares, records = [], [], [], []
    for _ in range(rounds):
        bare, _ = _train(model, norm, None, training)
        watched, records = _train(model, norm, options, training)
        plain.append(1e3 * bare / training.steps)
        overheads.append(watched / bare - 1)
        first = records[0].seconds
        shares.append(sum(r.seconds for r in records) / (watched + first))
    products = statistics.mean(r.num_hvps for r in records[1:])
    counts = [len(records), f"{products:.1f}"]
    return [spread(plain), spread(overheads), spread(shares), *counts]


def _train(
    model: str, norm: str, options: dict[str, Any] | None, training: Training
) -> tuple[float, list[Any]]:
    """Seconds, without the first measurement, which is cold; and the records."""
    net, criterion, (x, y) = build(model) if model in MODELS else build_wide()
    optimizer = NonEuclideanGD(net.named_parameters(), training.lr, norm)
    monitor = None
    if options is not None:
        monitor = geodiag_torch.attach(optimizer, net, criterion=criterion, data=(x, y), **options)

    def step() -> None:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()

    step()
    began = time.perf_counter()
    for _ in range(training.steps):
        step()
    taken = time.perf_counter() - began
    return taken, monitor.records if monitor is not None else []
