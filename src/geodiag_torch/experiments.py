"""Three small models and their trainer, for ``geodiag demo`` and ``geodiag reproduce``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (as everyone calls it)

import geodiag
from geodiag.blocks import Blocks
from geodiag_torch.optimizers.non_euclidean import NonEuclideanGD

Params: TypeAlias = "dict[str, Tensor]"
HEADS = 2


class Trainer:
    """Full-batch training that can be measured between steps, in the precision of the weights.

    ``model``: one of :data:`MODELS`.
    """

    def __init__(self, model: str, weights: dict[str, np.ndarray[Any, Any]], x: Any, y: Any):
        inputs, targets = torch.tensor(x), torch.tensor(y)
        self._net = Net(MODELS[model], weights)
        criterion = cross_entropy if model == "transformer" else squared_error
        self._loss = lambda: criterion(self._net(inputs), targets)
        self.problem = geodiag.problem(self._net, criterion=criterion, data=(inputs, targets))

    def set_optimizer(self, norm: Any, lr: float, normalized: bool) -> None:
        self._optimizer = NonEuclideanGD(self._net.named_parameters(), lr, norm, normalized)

    def point(self) -> Blocks:
        return self.problem.at().point()

    def step(self) -> None:
        self._optimizer.zero_grad()
        self._loss().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


class Net(nn.Module):
    """A function of named parameters and inputs as a module."""

    def __init__(
        self, run: Callable[[Params, Tensor], Tensor], weights: dict[str, np.ndarray[Any, Any]]
    ) -> None:
        super().__init__()
        self._run = run
        for name, w in weights.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(w)))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of the model."""
        return self._run(dict(self.named_parameters()), x)


def mlp(p: Params, x: Tensor) -> Tensor:
    """(n, channels, 8, 8) to (n, 10); weights and biases of the layers in name order."""
    weights, biases = ([p[n] for n in sorted(p) if p[n].ndim == k] for k in (2, 1))
    x = F.linear(x.flatten(1), weights[0], biases[0])
    for w, b in zip(weights[1:], biases[1:], strict=True):
        x = F.linear(torch.tanh(x), w, b)
    return x


def cnn(p: Params, x: Tensor) -> Tensor:
    """(n, channels, 8, 8) to (n, 10)."""
    x = F.avg_pool2d(torch.tanh(F.conv2d(x, p["conv1"], p["b1"], padding=1)), 2)
    x = F.avg_pool2d(torch.tanh(F.conv2d(x, p["conv2"], p["b2"], padding=1)), 2)
    return F.linear(x.flatten(1), p["w3"], p["b3"])


def transformer(p: Params, tokens: Tensor) -> Tensor:
    """(n, t) characters to (n, t, vocabulary) logits."""
    x = p["embed"][tokens] + p["position"]
    x = x + _attention(p, _norm(p, 1, x))
    up = F.gelu(F.linear(_norm(p, 2, x), p["up"], p["up_bias"]), approximate="tanh")
    x = x + F.linear(up, p["down"], p["down_bias"])
    return F.linear(_norm(p, 3, x), p["head"])


def _norm(p: Params, i: int, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"norm{i}"], p[f"shift{i}"])


def _attention(p: Params, x: Tensor) -> Tensor:
    n, t, width = x.shape
    q, k, v = (
        part.view(n, t, HEADS, -1).transpose(1, 2)
        for part in F.linear(x, p["qkv"]).chunk(3, dim=-1)
    )
    scores = q @ k.transpose(-1, -2) / (width // HEADS) ** 0.5
    later = torch.ones(t, t, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(later, -torch.inf).softmax(dim=-1) @ v
    return F.linear(mixed.transpose(1, 2).reshape(n, t, width), p["out"])


MODELS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over examples of the squared distance."""
    return ((output - target) ** 2).sum(dim=1).mean()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over characters."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())
