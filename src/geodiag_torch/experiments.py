"""Three small models and their trainer, for ``geodiag demo`` and ``geodiag reproduce``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (as everyone calls it)

import geodiag
from geodiag.blocks import Blocks
from geodiag.oracles import Oracle, Problem
from geodiag.records import Record
from geodiag_torch.attach import attach
from geodiag_torch.optimizers.non_euclidean import NonEuclideanGD

Params: TypeAlias = "dict[str, Tensor]"
HEADS = 2


class Trainer:
    """Training that can be measured between steps, in the precision of the weights.

    ``model``: one of :data:`MODELS`.
    """

    def __init__(self, model: str, weights: dict[str, np.ndarray[Any, Any]], x: Any, y: Any):
        self._data = self._batch = torch.tensor(x), torch.tensor(y)
        self._net = Net(MODELS[model], weights)
        self._criterion = cross_entropy if model == "transformer" else squared_error
        self._optimizer: torch.optim.Optimizer
        self._clip: float | None = None
        self.problem = self._problem(self._data)

    def set_optimizer(self, norm: Any, lr: float, normalized: bool) -> None:
        self._optimizer = NonEuclideanGD(self._net.named_parameters(), lr, norm, normalized)

    def observe(
        self, optimizer: str, lr: float, options: Mapping[str, Any], every: int
    ) -> Sequence[Record]:
        own = dict(options)
        self._clip = own.pop("clip", None)
        for p in self._net.parameters():
            p.requires_grad_(optimizer != "Muon" or p.ndim == 2)
        moved = [p for p in self._net.parameters() if p.requires_grad]
        kind = Lion if optimizer == "Lion" else getattr(torch.optim, optimizer)
        self._optimizer = kind(moved, lr, **own)
        probe: dict[str, Any] = {"criterion": self._criterion, "data": self._data}
        return attach(self._optimizer, self._net, every=every, **probe).records

    def set_batch(self, chosen: Any) -> None:
        self._batch = self._data[0][chosen], self._data[1][chosen]

    def on_batch(self, point: Blocks) -> Oracle:
        return self._problem(self._batch).at(point)

    def point(self) -> Blocks:
        return self.problem.at().point()

    def step(self) -> None:
        self._optimizer.zero_grad()
        x, y = self._batch
        self._criterion(self._net(x), y).backward()  # type: ignore[no-untyped-call]
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._net.parameters(), self._clip)
        self._optimizer.step()

    def _problem(self, data: Any) -> Problem:
        return geodiag.problem(self._net, criterion=self._criterion, data=data)


class Lion(torch.optim.Optimizer):
    """w ← w − lr·(sign(β₁m + (1 − β₁)g) + γw), then m ← β₂m + (1 − β₂)g (arXiv 2302.06675)."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            lr, (beta, slow) = group["lr"], group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - lr * group["weight_decay"])
                p.sub_(torch.lerp(p.grad, m, beta).sign_(), alpha=lr)
                m.lerp_(p.grad, 1 - slow)


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
