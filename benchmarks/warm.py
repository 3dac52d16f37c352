"""S tracked along a training run: every tenth step, each measurement started with the last result,
and by a monitor.

At some of the steps both values are compared with the best of 20 long ascents at that point.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

import geodiag
from benchmarks.problems import MODELS, TRAININGS, build
from benchmarks.report import table
from benchmarks.timing import seconds, timed
from geodiag.estimators import Ascent
from geodiag_torch import NonEuclideanGD, attach

EVERY, COMPARED = 10, 8


def run(quick: bool) -> None:
    """Print one row per model and norm; ``quick``: the first half of the MLP's runs."""
    torch.set_num_threads(1)
    rows = [
        [model, norm, *_track(model, norm, quick)]
        for model in (MODELS[:1] if quick else MODELS)
        for norm in ("linf", "spectral")
    ]
    heads = [
        "model",
        "norm",
        "measurements",
        "tracked/best: median",
        "lowest",
        "HVPs: mean",
        "most",
        "gradients",
        "monitor/best: median",
        "lowest",
        "HVPs: mean",
    ]
    table(f"S every {EVERY} steps, started with the last result, and by a monitor", heads, rows)


def _track(model: str, norm: str, quick: bool) -> list[Any]:
    net, criterion, (x, y) = build(model)
    training = TRAININGS[model, norm]
    optimizer = NonEuclideanGD(net.named_parameters(), training.lr, norm)
    problem = geodiag.problem(net, criterion=criterion, data=(x, y))
    monitor = attach(optimizer, net, criterion=criterion, data=(x, y), every=EVERY)
    steps = training.steps // (2 if quick else 1)

    def gradient() -> None:
        torch.autograd.grad(criterion(net(x), y), [*net.parameters()])

    measured = range(0, steps + 1, EVERY)
    compared = {measured[(k + 1) * (len(measured) - 1) // COMPARED] for k in range(COMPARED)}
    result, products, gradients = None, [], []
    best, tracked = dict[int, float](), dict[int, float]()
    for step in range(steps + 1):
        if step in measured:
            result, taken = timed(partial(geodiag.sharpness, problem, norm, start=result))
            products.append(result.num_hvps)
            gradients.append(taken / seconds(gradient, 3))
            if step in compared:
                long = geodiag.sharpness(
                    problem, norm, estimator=Ascent(starts=20), max_hvps=1500, rtol=1e-6, seed=99
                )
                best[step] = long.value
                tracked[step] = result.value
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
    seen = {r.step: r.sharpness for r in monitor.records}
    best = {step: max(x, tracked[step], seen[step]) for step, x in best.items()}
    # Of a record's products one is that along the step.
    followed = statistics.mean(r.num_hvps - 1 for r in monitor.records)
    return [
        len(products),
        *_ratios(tracked, best),
        f"{statistics.mean(products):.1f}",
        max(products),
        f"{statistics.median(gradients):.1f}",
        *_ratios(seen, best),
        f"{followed:.1f}",
    ]


def _ratios(found: dict[int, float], best: dict[int, float]) -> list[str]:
    """The median and the least of what was found, relative to the best."""
    ratios = [found[step] / x for step, x in best.items()]
    return [f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}"]
