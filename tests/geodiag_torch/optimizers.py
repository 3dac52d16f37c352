"""Optimizers as they are copied around, with exact polar factors; a quadratic to run them on."""

from __future__ import annotations

import math

import torch
from torch import nn

from geodiag_torch import TorchProblem
from geodiag_torch.optimizers.geometry import LiveGeometry


def polar(m):
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    return u @ vh


class _Plain(torch.optim.Optimizer):
    """w ← (1 − lr·decay)·w − lr·direction(w, g), without momentum."""

    def __init__(self, params, lr=0.1, **options):
        super().__init__(params, {"lr": lr} | options)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group.get("weight_decay", 0.0))
                p.sub_(self.direction(p, p.grad), alpha=group["lr"])


class SignSGD(_Plain):
    def direction(self, p, g):
        return torch.sign(g)


class Lion(_Plain):
    def __init__(self, params, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, lr, betas=betas, weight_decay=weight_decay)

    def direction(self, p, g):
        return torch.sign(g)


class SingleDeviceMuon(_Plain):
    """The original: kernels are scaled by their last two axes."""

    def __init__(self, params, lr=0.1, momentum=0.0, weight_decay=0.0):
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay)

    def direction(self, p, g):
        scale = math.sqrt(max(1, p.size(-2) / p.size(-1)))
        return scale * polar(g.reshape(len(g), -1)).reshape(g.shape)


class Muon(_Plain):
    """Moonlight's: known by its options."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr, wd=0.0, momentum=0.0, adamw_betas=(0.9, 0.95))
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["use_muon"] = p.dim() == 2

    def direction(self, p, g):
        return 0.2 * math.sqrt(max(p.shape[:2])) * polar(g)


class MuonWithAuxAdam(_Plain):
    """Its options alone: Muon for some groups, Adam for the others."""


class Quadratic(nn.Module):
    """½⟨w, Hw⟩ over a matrix and a vector, with a random positive definite H."""

    def __init__(self, scale=1.0, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.a, self.b = nn.Parameter(draw(4, 2)), nn.Parameter(draw(3))
        root = draw(11, 11)
        self.register_buffer("H", scale * root @ root.T)

    def forward(self):
        w = torch.cat([self.a.flatten(), self.b])
        return 0.5 * w @ self.H @ w


def own_loss(model, batch):
    return model()


def geometry(optimizer, model, asked=None, where=None):
    problem = TorchProblem(model, loss_fn=own_loss, where=where)
    live = LiveGeometry([optimizer], problem.live(), problem.space, asked)
    live.alive = optimizer  # it holds the optimizer weakly
    return live, problem.space


def two_groups(model, lr=0.02, factor=3.0, **options):
    """The model's parameters by themselves, the last with another learning rate."""
    *first, last = model.named_parameters()
    return [
        {"params": first, "lr": lr, **options},
        {"params": [last], "lr": factor * lr, **options},
    ]


def one_step(optimizer, model):
    """(gradient, step) of one step."""
    optimizer.zero_grad()
    model().backward()
    g = {n: p.grad.clone() for n, p in model.named_parameters()}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.step()
    return g, {n: p.detach() - before[n] for n, p in model.named_parameters()}
