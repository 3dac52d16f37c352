"""The problems that λ_max is measured on: models, their data, and a few training steps from there.

Float32 throughout; the truth is computed in float64 by SciPy's ARPACK on plain double backward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from benchmarks.problems import TRAININGS, checkpoints
from benchmarks.problems import build as build_small
from geodiag_torch import NonEuclideanGD

WIDTHS, EXAMPLES, CLASSES = (784, 200, 200, 10), 512, 10
STEPS = 5


class Criterion(nn.Module):
    """A criterion that averages over examples, with the attribute by which curvlinops knows it."""

    reduction = "mean"

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.function(output, target)


@dataclass
class Case:
    """A model at one of the points of a stretch of training, with the true λ_max of each."""

    name: str
    model: nn.Module
    criterion: Any
    batch: tuple[Tensor, Tensor]
    points: list[dict[str, Tensor]]  # the weights now and after each step
    truths: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        vector = None
        for i in range(len(self.points)):
            self.at(i)
            value, vector = top_eigenpair(self.model, self.criterion, self.batch, vector)
            self.truths.append(value)
        self.at(0)

    def at(self, i: int) -> None:
        """Put the i-th point's weights into the model, as an optimizer does: in place."""
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(self.points[i][name])
                p.grad = None

    def gradient(self) -> Any:
        """What a training step computes, in plain framework code."""
        x, y = self.batch
        return torch.autograd.grad(self.criterion(self.model(x), y), [*self.model.parameters()])

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def cases(quick: bool) -> Iterator[Case]:
    """An MLP of 199,210 parameters, and the small models at the edge of spectral descent."""
    yield _wide()
    for model in ("mlp",) if quick else ("mlp", "cnn", "transformer"):
        *_, (_, net, _) = checkpoints(model, "spectral")
        _, criterion, batch = build_small(model)
        optimizer = NonEuclideanGD(
            net.named_parameters(), TRAININGS[model, "spectral"].lr, "spectral"
        )
        points = _walk(net, criterion, batch, optimizer, STEPS)
        yield Case(f"{model}, edge", net, Criterion(criterion), batch, points)


def build_wide() -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """An MLP of 199,210 parameters for random data in ten classes."""
    rng = np.random.default_rng(0)
    layers: list[nn.Module] = []
    for m, n in pairwise(WIDTHS):
        layers += [nn.Linear(m, n), nn.Tanh()]
    net = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for p in net.parameters():
            draw = rng.standard_normal(tuple(p.shape)) / np.sqrt(p.shape[-1])
            p.copy_(torch.tensor(draw if p.ndim == 2 else 0 * draw))
    x = torch.tensor(rng.standard_normal((EXAMPLES, WIDTHS[0])), dtype=torch.float32)
    y = torch.tensor(rng.integers(0, CLASSES, EXAMPLES))
    return net, nn.CrossEntropyLoss(), (x, y)


def _wide(trained: int = 40) -> Case:
    """Trained a little, so that the spectrum is that of training."""
    net, criterion, (x, y) = build_wide()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    _walk(net, criterion, (x, y), optimizer, trained)
    points = _walk(net, criterion, (x, y), optimizer, STEPS)
    return Case("mlp 784-200-200-10", net, Criterion(criterion), (x, y), points)


def _walk(
    net: nn.Module, criterion: Any, batch: Any, optimizer: torch.optim.Optimizer, steps: int
) -> list[dict[str, Tensor]]:
    points = []
    for step in range(steps + 1):
        points.append({name: p.detach().clone() for name, p in net.named_parameters()})
        if step < steps:
            optimizer.zero_grad()
            criterion(net(batch[0]), batch[1]).backward()
            optimizer.step()
    return points


def top_eigenpair(model: nn.Module, criterion: Any, batch: Any, start: Any) -> tuple[float, Any]:
    """λ_max in float64 to about ten digits, and its eigenvector."""
    model = copy.deepcopy(model).double()
    x, y = (t.double() if t.is_floating_point() else t for t in batch)
    parameters = [*model.parameters()]
    gradient = torch.autograd.grad(criterion(model(x), y), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])

    def hvp(v: Any) -> Any:
        product = torch.autograd.grad(
            flat, parameters, torch.as_tensor(v).flatten().double(), retain_graph=True
        )
        return torch.cat([p.flatten() for p in product]).numpy()

    if start is None:
        start = np.random.default_rng(7).standard_normal(flat.numel())
    H = LinearOperator((flat.numel(),) * 2, matvec=hvp, dtype=np.float64)
    (value,), vector = eigsh(H, k=1, which="LA", v0=start, tol=1e-10, ncv=40)
    return float(value), vector[:, 0]
