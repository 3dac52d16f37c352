"""The torch side of ``geodiag demo``: a small tanh MLP under non-Euclidean gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import geodiag
from geodiag.blocks import Blocks
from geodiag_torch.optimizers.non_euclidean import NonEuclideanGD


class Trainer:
    """Full-batch training that can be measured between steps."""

    def __init__(
        self, weights: dict[str, np.ndarray[Any, Any]], x: Any, y: Any, norm: str, lr: float
    ) -> None:
        inputs, targets = torch.tensor(x), torch.tensor(y)
        layers: list[nn.Module] = []
        for name, w in weights.items():
            if name.endswith("weight"):
                layers += [nn.Linear(w.shape[1], w.shape[0], dtype=inputs.dtype), nn.Tanh()]
        self._model = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for p, w in zip(self._model.parameters(), weights.values(), strict=True):
                p.copy_(torch.from_numpy(w))
        self._optimizer = NonEuclideanGD(self._model.named_parameters(), lr, norm)
        self._loss = lambda: squared_error(self._model(inputs), targets)
        self.problem = geodiag.problem(self._model, criterion=squared_error, data=(inputs, targets))

    def point(self) -> Blocks:
        """The parameters now."""
        return self.problem.at().point()

    def step(self) -> None:
        """One step of the optimizer."""
        self._optimizer.zero_grad()
        self._loss().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over examples of the squared distance."""
    return ((output - target) ** 2).sum(dim=1).mean()
