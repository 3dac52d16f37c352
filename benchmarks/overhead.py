"""What a monitor costs a training run: the same steps with one, without, and by hand, in turn."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

import geodiag_torch
from benchmarks.by_hand import ByHand
from benchmarks.cases import build_wide
from benchmarks.problems import MODELS, TRAININGS, Training, build
from benchmarks.report import spread, table
from geodiag_torch import NonEuclideanGD

BUDGET, EVERY = 0.05, 10
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
        plans = [(f"every={EVERY}", {"every": EVERY}, training)]
        if model == "mlp":
            longer = Training(training.lr, 5 * training.steps)
            plans.append((f"budget={BUDGET}", {"every": 1, "budget": BUDGET}, longer))
        elif quick:
            continue
        rows += [
            [model, norm, label, *_compare(model, norm, options, plan, rounds)]
            for label, options, plan in plans
        ]
    heads = ["model", "norm", "monitor", "ms a step", "overhead, in steps", "by hand"]
    table(
        "Training with a monitor attached, against training without",
        [*heads, "share, own account", "records", "HVPs a record"],
        rows,
    )


def _compare(
    model: str, norm: str, options: dict[str, Any], training: Training, rounds: int
) -> list[Any]:
    overheads, by_hand, plain, shares, records = [], [], [], [], []
    for _ in range(rounds):
        bare, _ = _train(model, norm, None, training)
        watched, records = _train(model, norm, options, training)
        plain.append(1e3 * bare / training.steps)
        overheads.append(watched / bare - 1)
        first = records[0].seconds
        shares.append(sum(r.seconds for r in records) / (watched + first))
        if "budget" not in options:
            by_hand.append(_train(model, norm, None, training, by_hand=True)[0] / bare - 1)
    products = statistics.mean(r.num_hvps for r in records[1:])
    counts = [len(records), f"{products:.1f}"]
    hand = spread(by_hand) if by_hand else None
    return [spread(plain), spread(overheads), hand, spread(shares), *counts]


def _train(
    model: str,
    norm: str,
    options: dict[str, Any] | None,
    training: Training,
    by_hand: bool = False,
) -> tuple[float, list[Any]]:
    """Seconds, without the first measurement, which is cold; and the records."""
    net, criterion, (x, y) = build(model) if model in MODELS else build_wide()
    optimizer = NonEuclideanGD(net.named_parameters(), training.lr, norm)
    monitor = None
    hand = ByHand(net, criterion, (x, y), norm) if by_hand else None
    if options is not None:
        monitor = geodiag_torch.attach(optimizer, net, criterion=criterion, data=(x, y), **options)

    def step(number: int) -> None:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        measured = hand if number % EVERY == 0 else None
        if measured:
            measured.before()
        optimizer.step()
        if measured:
            measured.after()

    step(0)
    began = time.perf_counter()
    for number in range(1, training.steps + 1):
        step(number)
    taken = time.perf_counter() - began
    return taken, monitor.records if monitor is not None else []
