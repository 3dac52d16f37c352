"""S tracked along a training run: every tenth step, each measurement started with the last result.

At some of the steps the tracked value is compared with the best of 20 long ascents at that point.
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
from geodiag_torch import NonEuclideanGD

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
    ]
    table(f"S every {EVERY} steps, started with the last result", [*heads, "gradients"], rows)


def _track(model: str, norm: str, quick: bool) -> list[Any]:
    net, criterion, (x, y) = build(model)
    training = TRAININGS[model, norm]
    optimizer = NonEuclideanGD(net.named_parameters(), training.lr, norm)
    problem = geodiag.problem(net, criterion=criterion, data=(x, y))
    steps = training.steps // (2 if quick else 1)

    def gradient() -> None:
        torch.autograd.grad(criterion(net(x), y), [*net.parameters()])

    measured = range(0, steps + 1, EVERY)
    compared = {measured[(k + 1) * (len(measured) - 1) // COMPARED] for k in range(COMPARED)}
    result, ratios, products, gradients = None, [], [], []
    for step in range(steps + 1):
        if step in measured:
            result, taken = timed(partial(geodiag.sharpness, problem, norm, start=result))
            products.append(result.num_hvps)
            gradients.append(taken / seconds(gradient, 3))
            if step in compared:
                long = geodiag.sharpness(
                    problem, norm, estimator=Ascent(starts=20), max_hvps=1500, rtol=1e-6, seed=99
                )
                ratios.append(result.value / max(result.value, long.value))
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
    return [
        len(products),
        f"{statistics.median(ratios):.3f}",
        f"{min(ratios):.3f}",
        f"{statistics.mean(products):.1f}",
        max(products),
        f"{statistics.median(gradients):.1f}",
    ]
