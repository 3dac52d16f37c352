"""What a monitor costs a training run: the same steps with and without one, in turn."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

import geodiag_torch
from benchmarks.problems import TRAININGS, build
from benchmarks.report import spread, table
from geodiag_torch import NonEuclideanGD

BUDGET = 0.05


def run(quick: bool) -> None:
    """Print one row per norm: the digits MLP, float32, full batch."""
    torch.set_num_threads(1)
    rounds, steps = (2, 900) if quick else (5, 900)  # as long as it takes to the edge
    rows = [
        [norm, label, *_compare(norm, options, rounds, steps * longer)]
        for norm in ("l2", "linf", "spectral")
        for label, options, longer in (
            ("every=10", {"every": 10}, 1),
            (f"budget={BUDGET}", {"every": 1, "budget": BUDGET}, 5),
        )
    ]
    heads = ["norm", "monitor", "ms a step", "overhead, in steps", "records", "HVPs a record"]
    table("Training with a monitor attached, against training without", heads, rows)


def _compare(norm: str, options: dict[str, Any], rounds: int, steps: int) -> list[Any]:
    shares, plain, records = [], [], []
    for _ in range(rounds):
        bare, _ = _train(norm, None, steps)
        watched, records = _train(norm, options, steps)
        plain.append(1e3 * bare / steps)
        shares.append(watched / bare - 1)
    products = statistics.mean(r.num_hvps for r in records)
    return [spread(plain), spread(shares), len(records), f"{products:.1f}"]


def _train(norm: str, options: dict[str, Any] | None, steps: int) -> tuple[float, list[Any]]:
    """Seconds, without the first measurement, which is cold; and the records."""
    net, criterion, (x, y) = build("mlp")
    lr = 0.2 if norm == "l2" else TRAININGS["mlp", norm].lr
    optimizer = NonEuclideanGD(net.named_parameters(), lr, norm)
    monitor = None
    if options is not None:
        monitor = geodiag_torch.attach(optimizer, net, criterion=criterion, data=(x, y), **options)

    def step() -> None:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()

    step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    taken = time.perf_counter() - began
    return taken, monitor.records if monitor is not None else []
