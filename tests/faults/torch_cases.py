"""A torch problem that reports every call it gets, and the measurements that faults come into."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn

import geodiag
from tests.faults.injector import Injector


class _Backward(torch.autograd.Function):
    """x, reporting its backward pass, and the backward pass of that."""

    @staticmethod
    def forward(ctx, x, injector):
        ctx.injector = injector
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        ctx.injector.tick("backward")
        return _Backward.apply(g, ctx.injector), None


class Reporting(nn.Module):
    """A layer that reports its forward and backward passes."""

    def __init__(self, injector: Injector) -> None:
        super().__init__()
        self.injector = injector

    def forward(self, x):
        self.injector.tick("forward")
        return _Backward.apply(x, self.injector)


class Loader:
    """Two batches in an order that is drawn anew in each pass."""

    def __init__(self, injector: Injector, data: Any) -> None:
        self.injector, self.data = injector, data

    def __iter__(self):
        self.injector.tick("iteration")
        for rows in torch.randperm(len(self.data[0])).split(7):
            self.injector.tick("batch")
            yield self.data[0][rows], self.data[1][rows]


class Case:
    """A model with all that a measurement might disturb: BatchNorm and dropout in training,
    gradients, Adam with state; and the data, whole and in batches."""

    def __init__(self, injector: Injector) -> None:
        self.injector = injector
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), Reporting(injector), nn.Tanh(),
            nn.Linear(4, 2),
        ).double()  # fmt: skip
        self.data = torch.randn(12, 3).double(), torch.randn(12, 2).double()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.plain_loss().backward()
        self.optimizer.step()

    def plain_loss(self) -> torch.Tensor:
        return nn.functional.mse_loss(self.model(self.data[0]), self.data[1])

    def criterion(self, output, target):
        self.injector.tick("criterion")
        torch.rand(1), random.random(), np.random.random()  # move the random states
        return nn.functional.mse_loss(output, target)

    def problem(self, batches: bool = False, **options: Any) -> Any:
        data = Loader(self.injector, self.data) if batches else self.data
        return geodiag.problem(self.model, criterion=self.criterion, data=data, **options)


def sharp(norm: str, budget: int, **options: Any) -> Any:
    return lambda problem: geodiag.sharpness(problem, norm, max_hvps=budget, **options)


def warm(problem: Any) -> Any:
    cold = geodiag.sharpness(problem, "linf", max_hvps=8)
    return geodiag.sharpness(problem, "linf", start=cold.state)


def smoothness(kind: str, norm: str) -> Any:
    def call(problem):
        step = {name: torch.full_like(x, 0.01) for name, x in problem.at().point().items()}
        return geodiag.directional_smoothness(problem, step, norm, kind=kind)

    return call


def questions(problem: Any) -> Any:
    """Every question of an oracle, and of a closed problem's once more."""
    with problem:
        oracle = problem.at()
        w = oracle.point()
        stack = {name: torch.stack([x, 2 * x, -x, x]) for name, x in w.items()}
        said = [oracle.loss(), oracle.loss_at(w), oracle.gradient(), oracle.gradient_at(w)]
        said += [oracle.hvp(w), oracle.hvps(stack)]
    return [*said, oracle.hvp(w)]


# Name: (measurement, whether over batches, options of the problem).
MEASUREMENTS: dict[str, Any] = {
    "l2": (sharp("l2", 8), False, {}),
    "l2 recompute": (sharp("l2", 4), True, {}),
    "l2 batches kept": (sharp("l2", 4), True, {"memory": 10**9}),
    "l2 differences": (sharp("l2", 3), False, {"engine": "finite-difference"}),
    "linf": (sharp("linf", 16), False, {}),
    "spectral": (sharp("spectral", 14), False, {}),
    "block": (sharp("block", 14), False, {}),
    "linf certificate": (sharp("linf", 12, certificate=True), False, {}),
    "spectral certificate": (sharp("spectral", 12, certificate=True), False, {}),
    "frank-wolfe": (sharp("spectral", 5, estimator="frank_wolfe"), False, {}),
    "warm": (warm, False, {}),
    "remainder": (smoothness("remainder", "l2"), False, {}),
    "path": (smoothness("path", "spectral"), True, {}),
    "questions": (questions, False, {}),
    "questions on batches": (questions, True, {}),
}


def said(answer: Any) -> Any:
    """An answer as comparable bytes."""
    if isinstance(answer, torch.Tensor):
        return answer.detach().numpy().tobytes()
    if isinstance(answer, dict):
        return {name: said(x) for name, x in answer.items()}
    if isinstance(answer, list):
        return [said(x) for x in answer]
    if isinstance(answer, geodiag.SharpnessResult):
        direction = said(dict(answer.direction))
        return answer.value.hex(), direction, answer.upper, answer.notes, answer.num_hvps
    return float(answer).hex()
