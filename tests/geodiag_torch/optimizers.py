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
    """Google's: sign(β₁m + (1 − β₁)g), then m ← β₂m + (1 − β₂)g."""

    def __init__(self, params, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, lr, betas=betas, weight_decay=weight_decay)

    def direction(self, p, g):
        group = next(x for x in self.param_groups if any(p is q for q in x["params"]))
        fast, slow = group["betas"]
        m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
        along = torch.sign(fast * m + (1 - fast) * g)
        m.mul_(slow).add_(g, alpha=1 - slow)
        return along


class QHM(torch.optim.Optimizer):
    """The authors': along (1 − ν)g + νm, with decay of the gradient or of the weights."""

    def __init__(
        self, params, lr=0.1, momentum=0.0, nu=0.0, weight_decay=0.0, weight_decay_type="grad"
    ):
        given = {"lr": lr, "momentum": momentum, "nu": nu, "weight_decay": weight_decay}
        super().__init__(params, given | {"weight_decay_type": weight_decay_type})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            rate, beta, nu, decay = (group[k] for k in ("lr", "momentum", "nu", "weight_decay"))
            for p in group["params"]:
                g = p.grad
                if group["weight_decay_type"] == "grad":
                    g = g + decay * p
                else:
                    p.mul_(1 - rate * decay)
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                m.mul_(beta).add_(g, alpha=1 - beta)
                p.sub_(nu * m + (1 - nu) * g, alpha=rate)


class AdEMAMix(torch.optim.Optimizer):
    """The authors', without warmups: Adam along m₁/(1 − β₁ᵗ) + αm₂."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999, 0.9999), alpha=5.0, weight_decay=0.0):
        given = {"lr": lr, "betas": betas, "alpha": alpha, "eps": 1e-8}
        given |= {"weight_decay": weight_decay, "alpha_warmup": None, "beta3_warmup": None}
        super().__init__(params, given)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            b1, b2, b3 = group["betas"]
            for p in group["params"]:
                g, s = p.grad, self.state[p]
                if not s:
                    s["step"] = torch.zeros(())
                    for name in ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"):
                        s[name] = torch.zeros_like(p)
                s["step"] += 1
                t = float(s["step"])
                s["exp_avg_fast"].mul_(b1).add_(g, alpha=1 - b1)
                s["exp_avg_slow"].mul_(b3).add_(g, alpha=1 - b3)
                s["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2)
                root = (s["exp_avg_sq"] / (1 - b2**t)).sqrt() + group["eps"]
                along = s["exp_avg_fast"] / (1 - b1**t) + group["alpha"] * s["exp_avg_slow"]
                p.sub_(along / root + group["weight_decay"] * p, alpha=group["lr"])


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
