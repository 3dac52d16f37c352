"""What a record without S costs a training run, and the losses of the search for the critical step.

Times are of the process, not of the clock: the parts of a round follow each other on a machine that
others use too.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

import geodiag_torch
from benchmarks.cases import build_wide
from benchmarks.overhead import EVERY, RUNS
from benchmarks.problems import MODELS, Training, build
from benchmarks.report import spread, table
from geodiag.critical_lr import search
from geodiag_torch import NonEuclideanGD

PROBE = 8  # the part of the batch that is measured, where not all of it is
PLANS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("whole batch", {}, 1),
    ("an eighth", {}, PROBE),
    ("whole batch, critical", {"critical": True}, 1),
)


def run(quick: bool) -> None:
    """Print one row per model, norm and plan; ``quick``: the digits MLP in ℓ2 alone."""
    torch.set_num_threads(1)
    chosen = {key: x for key, x in RUNS.items() if not quick or key == ("mlp", "l2")}
    rows = [
        [model, norm, label, *_compare(model, norm, options, part, training, 2 if quick else 3)]
        for (model, norm), training in chosen.items()
        for label, options, part in PLANS
    ]
    heads = ["model", "norm", "probe", "overhead, in steps", "HVPs a record", "same weights"]
    table(f"Training with sharpness=False, every={EVERY}, against training without", heads, rows)
    heads = ["model", "norm", "from 1/ζ: median", "most", "published, from lr: median", "most"]
    table(
        "Losses of the search for the critical step, L(w) not counted",
        heads,
        [
            [model, norm, *_losses(model, norm, training)]
            for (model, norm), training in chosen.items()
        ],
    )


def _compare(
    model: str, norm: str, options: dict[str, Any], part: int, training: Training, rounds: int
) -> list[Any]:
    overheads, same, products = [], True, [0]
    for _ in range(rounds):
        bare, weights, _ = _train(model, norm, None, training)
        taken, others, records = _train(model, norm, options, training, part)
        overheads.append(taken / bare - 1)
        same &= all(map(torch.equal, weights, others))
        products = [r.num_hvps for r in records]
    return [spread(overheads), f"{statistics.mean(products):.2f}", "yes" if same else "no"]


def _made(model: str, norm: str, training: Training) -> Any:
    net, criterion, batch = build(model) if model in MODELS else build_wide()
    return net, criterion, batch, NonEuclideanGD(net.named_parameters(), training.lr, norm)


def _train(
    model: str, norm: str, options: dict[str, Any] | None, training: Training, part: int = 1
) -> tuple[float, list[torch.Tensor], list[Any]]:
    """Seconds of the process, without the first step; the weights; and the records."""
    net, criterion, (x, y), optimizer = _made(model, norm, training)
    monitor = None
    if options is not None:
        probe = x[: len(x) // part], y[: len(x) // part]
        monitor = geodiag_torch.attach(
            optimizer, net, criterion=criterion, data=probe, every=EVERY, sharpness=False, **options
        )

    def step() -> None:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()

    step()
    began = time.process_time()
    for _ in range(training.steps):
        step()
    taken = time.process_time() - began
    weights = [p.detach().clone() for p in net.parameters()]
    return taken, weights, monitor.records if monitor is not None else []


def _losses(model: str, norm: str, training: Training) -> list[Any]:
    """Of both searches at every tenth step: ours by the passes of a record, and as published."""
    net, criterion, (x, y), optimizer = _made(model, norm, training)
    calls = [0]

    def counted(output: Any, target: Any) -> Any:
        calls[0] += 1
        return criterion(output, target)

    options = {"criterion": counted, "data": (x, y), "every": EVERY, "sharpness": False}
    monitor = geodiag_torch.attach(optimizer, net, critical=True, **options)
    ours, published = [], []
    for number in range(training.steps + 1):
        here = [p.detach().clone() for p in net.parameters()]
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        calls[0] = 0
        optimizer.step()
        if number % EVERY or number == 0:
            continue
        record = monitor.records[-1]
        # All but L(w), a product, and a sample of the rounding, which both searches go without.
        ours.append(calls[0] - 1 - record.num_hvps)
        there = [p.detach().clone() for p in net.parameters()]
        published.append(_published(net, criterion, (x, y), here, there))
        _put(net, there)
    return [
        f"{statistics.median(ours):g}",
        max(ours),
        f"{statistics.median(published):g}",
        max(published),
    ]


def _published(net: Any, criterion: Any, batch: Any, here: Any, there: Any) -> int:
    """Doubling or halving from the learning rate, then bisection to 1/16 (arXiv 2601.16979)."""

    def loss(alpha: float) -> float:
        _put(net, [a + alpha * (b - a) for a, b in zip(here, there, strict=True)])
        with torch.no_grad():
            return float(criterion(net(batch[0]), batch[1]))

    start = loss(0.0)
    return search(lambda alpha: not loss(alpha) <= start, 1.0, 1 / 16, 40).num_losses


def _put(net: Any, weights: Any) -> None:
    with torch.no_grad():
        for p, w in zip(net.parameters(), weights, strict=True):
            p.copy_(w)
