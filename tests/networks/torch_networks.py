"""A network as a torch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.networks.network import ACTIVATIONS, ROWS, Network


class _WrongSecond(torch.autograd.Function):
    """tanh, whose derivative takes itself for a constant."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.factor = 1 - torch.tanh(x.detach()) ** 2
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g * ctx.factor


class _Right(torch.autograd.Function):
    """tanh with its derivative."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x) ** 2)


class Module(nn.Module):
    """A network in torch."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        parts = network.parts
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(network.widths, network.widths[1:], strict=False)
        )
        width = network.widths[1]
        if "kept in a list" in parts:
            self.kept = nn.Parameter(torch.zeros(width))
            self.listed = [self.kept]
        for part, name, size in (
            ("closed over", "outside", width),
            ("unused", "unused", 2),
            ("scale", "scale", 1),
            ("linear", "slope", 2),
        ):
            if part in parts:
                setattr(self, name, nn.Parameter(torch.zeros(size)))
        if "sparse" in parts:
            self.table = nn.Embedding(ROWS, width, sparse=True)
        if "tied" in parts:
            self.tail = nn.Module()
            self.tail.same = self.layers[0].weight
        self.to(getattr(torch, network.dtype))
        values = network.parameters()
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(torch.from_numpy(values[name]))
        if "frozen" in parts:
            self.layers[0].bias.requires_grad_(False)
        # Read by a name of the object's own, and not through the module's dictionaries.
        object.__setattr__(self, "around", getattr(self, "outside", None))
        if "own weight" in parts:  # of the loss: no parameter of the module
            own = nn.Parameter(torch.from_numpy(values["own"]).to(getattr(torch, network.dtype)))
            object.__setattr__(self, "own", own)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts, act = self.network.parts, ACTIVATIONS[self.network.activation]
        for i, layer in enumerate(self.layers):
            x = act(layer(x))
            if i == 0:
                x = x + self.listed[0] * x if "kept in a list" in parts else x
                x = x + self.around * x if "closed over" in parts else x
                if "sparse" in parts:
                    x = x + self.table(torch.tensor([0, 1, 1]))
                if "wrong second derivative" in parts:
                    x = _WrongSecond.apply(x)
                elif "custom function" in parts:
                    x = _Right.apply(x)
                if "straight-through" in parts:
                    x = x + (torch.round(3 * x) / 3 - x).detach()
        return (x * self.scale if "scale" in parts else x).sum(1)


def loss(model: Module, batch: Any) -> torch.Tensor:
    """A ``loss_fn``."""
    x, y = batch
    parts, out = model.network.parts, model(x)
    found = ((out - y) ** 2).mean()
    if "detached" in parts:
        found = found + ((out * out - (0.7 * out).detach()) ** 2).mean()
    if "no_grad" in parts:
        with torch.no_grad():
            target = 0.7 * model(x)
        found = found + ((out * out - target) ** 2).mean()
    if "tied" in parts:
        found = found + (model.tail.same**3).sum()
    if "linear" in parts:
        found = found + 2 * model.slope.sum()
    if "own weight" in parts:
        found = found + 1.5 * (model.own**2).sum() + model.own.sum() * out.mean()
    if "decay" in parts:
        found = found + 0.15 * sum((p**2).sum() for p in model.parameters())
    return found


def batch(network: Network) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(a).to(getattr(torch, network.dtype)) for a in network.batch())
