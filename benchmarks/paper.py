"""(a) Cold S against the paper's procedure: Frank–Wolfe, 5 restarts of 50 iterations, 255 products.

The paper's procedure is written here in plain PyTorch: each product recomputes forward, backward
and second backward, and the LMO takes singular value decompositions in float64. The best value
known comes from 40 long ascents and from everything else that was run, and is the same for all.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import geodiag
from benchmarks.problems import CHECKPOINTS, TRAININGS, Batch, Criterion, build, checkpoints
from benchmarks.report import table
from benchmarks.timing import timed
from geodiag.estimators import Ascent

RESTARTS, ITERATIONS = 5, 50
SEEDS = (0, 1, 2)
# What geodiag is given: a tenth of the paper's products at most, and its default, a quarter.
BUDGETS = {"20 HVPs": 20, "default": None}


def run(quick: bool = False) -> None:
    """Print ratios per problem and checkpoint, and their medians and extremes."""
    rows, worst = [], []
    for (model, norm), checkpoint, net in _points(quick):
        _, criterion, batch = build(model)
        row = _compare(net, norm, criterion, batch)
        rows.append([f"{model}, {norm}, {checkpoint}", *row])
        worst.append(row)
    heads = ["problem", "paper/best"]
    for name in BUDGETS:
        heads += [f"{name}: /paper", "/best", "HVPs", "time/paper's"]
    shown = [[row[0], *(f"{v:.3g}" for v in row[1:])] for row in rows]
    columns = list(zip(*worst, strict=True))
    for label, function in (("median", statistics.median), ("least", min), ("most", max)):
        shown.append([label, *(f"{function(column):.3g}" for column in columns)])
    table(f"S, cold, against the paper's procedure; medians of {len(SEEDS)} seeds", heads, shown)


def _points(quick: bool) -> Iterator[tuple[tuple[str, str], str, nn.Module]]:
    for model, norm in TRAININGS:
        if quick and model != "mlp":
            continue
        for checkpoint, net, _ in checkpoints(model, norm):
            if not quick or checkpoint == [*CHECKPOINTS][-1]:
                yield (model, norm), checkpoint, net


def _compare(net: nn.Module, norm: str, criterion: Criterion, batch: Batch) -> list[float]:
    def ours(budget: int | None, seed: int) -> Any:
        return geodiag.sharpness(
            net, norm, criterion=criterion, data=batch, max_hvps=budget, seed=seed
        )

    paper, found = [], {name: [] for name in BUDGETS}  # type: ignore[var-annotated]
    for seed in SEEDS:
        value, seconds = timed(lambda seed=seed: Paper(net, criterion, batch, norm).run(seed))
        paper.append((value, seconds))
        for name, budget in BUDGETS.items():
            result, spent = timed(lambda budget=budget, seed=seed: ours(budget, seed))
            found[name].append((result.value, result.num_hvps, spent / seconds))
    long = geodiag.sharpness(
        net, norm, criterion=criterion, data=batch, estimator=Ascent(starts=40),
        max_hvps=4000, rtol=1e-6, seed=99,
    )  # fmt: skip
    best = max(long.value, *(v for v, _ in paper), *(v[0] for f in found.values() for v in f))
    typical = statistics.median(value for value, _ in paper)
    row = [typical / best]
    for trials in found.values():
        value, hvps, ratio = (statistics.median(x) for x in zip(*trials, strict=True))
        row += [value / typical, value / best, hvps, ratio]
    return row


class Paper:
    """The paper's procedure."""

    def __init__(self, net: nn.Module, criterion: Criterion, batch: Batch, norm: str) -> None:
        self.net, self.criterion, self.batch = net, criterion, batch
        self.weights = [*net.parameters()]
        self.lmo = {"linf": _signs, "spectral": _polars}[norm]
        self.length = {"linf": _largest, "spectral": _operator}[norm]

    def run(self, seed: int) -> float:
        """The best ⟨d, Hd⟩ of the restarts."""
        source = torch.Generator().manual_seed(seed)
        best = -float("inf")
        for _ in range(RESTARTS):
            d = self.unit([torch.randn(p.shape, generator=source) for p in self.weights])
            for k in range(ITERATIONS):
                gamma = 2 / (k + 2)
                vertex = self.lmo(self.hvp(d))
                d = [(1 - gamma) * x + gamma * v for x, v in zip(d, vertex, strict=True)]
            d = self.unit(d)
            value = sum((x * y).sum() for x, y in zip(d, self.hvp(d), strict=True))
            best = max(best, float(value))
        return best

    def hvp(self, d: list[Tensor]) -> list[Tensor]:
        x, y = self.batch
        loss = self.criterion(self.net(x), y)
        gradient = torch.autograd.grad(loss, self.weights, create_graph=True)
        return [*torch.autograd.grad(gradient, self.weights, d)]

    def unit(self, d: list[Tensor]) -> list[Tensor]:
        length = self.length(d)
        return [x / length for x in d]


def _signs(g: list[Tensor]) -> list[Tensor]:
    return [x.sign() for x in g]


def _largest(d: list[Tensor]) -> Tensor:
    return torch.stack([x.abs().max() for x in d]).max()


def _polars(g: list[Tensor]) -> list[Tensor]:
    out = []
    for x in g:
        if x.ndim == 1:
            out.append(x / x.norm().clamp_min(1e-30))
            continue
        u, _, vh = torch.linalg.svd(x.flatten(1).double(), full_matrices=False)
        out.append((u @ vh).to(x.dtype).view_as(x))
    return out


def _operator(d: list[Tensor]) -> Tensor:
    return torch.stack(
        [x.norm() if x.ndim == 1 else torch.linalg.matrix_norm(x.flatten(1), 2) for x in d]
    ).max()
