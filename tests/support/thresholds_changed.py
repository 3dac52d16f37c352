"""Gradients that are clipped, scaled or summed before the optimizer; rules that one step decides.

Two tables: a factor that lasts, over many steps; and clipping at a fixed norm and normalized
rules, for which the threshold is of the step at hand: there ½⟨v, w⟩², whose S is ‖v‖*², takes one
step from where S is just below and just above.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import torch
from torch import nn

import geodiag
import geodiag_jax
from geodiag.core.spaces import Space
from geodiag_torch import attach
from tests.geodiag_torch import optimizers as zoo
from tests.geodiag_torch.optimizers import Quadratic, own_loss
from tests.geodiag_torch.test_thresholds import settled

SGD, Adam = torch.optim.SGD, torch.optim.Adam
STEPS, MOST = 600, 1e3
HEAD = """
## Gradients that are changed before the optimizer

By the training loop, at each step; thresholds are those of the records of `attach`, which sees the
factor in what the optimizer received. Where `clip_grad_value_` is reached there is none.

| what the loop does | optimizer | threshold on S | growth at 0.98 | growth at 1.02 |
|---|---|---|---|---|
"""
ONE_STEP = """
## Rules that one step decides

Clipping at a fixed norm and normalized updates have a threshold at the point where they are:
2‖g‖/(ηc) and 2‖g‖*/η. One step on ½⟨v, w⟩², whose S is ‖v‖*², from where S is just below and just
above it. Growth is that of |⟨v, w⟩|, in exact arithmetic |1 − 2S/threshold|.

| what is run | what is told | growth at 0.98 | growth at 1.02 |
|---|---|---|---|
"""


class Change(NamedTuple):
    make: Callable[[Any], Any]  # of the parameters
    optimizer: str
    before: Callable[[list[Any]], Any] | None = None  # the step
    backward: int = 1


def halve(parameters: list[Any]) -> None:
    length = float(torch.cat([p.grad.flatten() for p in parameters]).norm())
    nn.utils.clip_grad_norm_(parameters, (length + 1e-6) / 2)  # torch adds 1e-6 to the norm


def at_most_one(parameters: list[Any]) -> None:
    nn.utils.clip_grad_value_(parameters, 1.0)


CHANGES = {
    "`clip_grad_norm_` at half the norm": Change(lambda p: SGD(p, lr=0.02), "`SGD`", halve),
    "the same": Change(lambda p: SGD(p, 0.02, 0.9), "`SGD`: momentum 0.9", halve),
    "the same again": Change(lambda p: Adam(p, 0.02, (0.9, 1 - 1e-12)), "`Adam`", halve),
    "`clip_grad_value_`, not reached": Change(lambda p: SGD(p, 0.02), "`SGD`", at_most_one),
    "4 backward passes a step": Change(lambda p: SGD(p, 0.02), "`SGD`", backward=4),
    "4 passes, then half the norm": Change(
        lambda p: SGD(p, 0.02, 0.9, nesterov=True), "`SGD`: momentum 0.9, nesterov", halve, 4
    ),
}


def step(optimizer: Any, model: Any, change: Change) -> None:
    optimizer.zero_grad()
    for _ in range(change.backward):
        model().backward()
    if change.before is not None:
        change.before(list(model.parameters()))
    optimizer.step()


def prepared(name: str, scale: float) -> tuple[Any, Any, Any]:
    """(optimizer, model, record of the first step)"""
    model = Quadratic(scale)
    optimizer = CHANGES[name].make(model.parameters())
    settled(optimizer, model)
    monitor = attach(optimizer, model, loss_fn=own_loss, every=10**6, rtol=1e-8)
    step(optimizer, model, CHANGES[name])
    monitor.detach()
    return optimizer, model, monitor.records[0]


def growth(name: str, ratio: float) -> float:
    """How much the largest |w| grows; the run ends where it has grown a thousandfold."""
    unit = prepared(name, 1.0)[2].ratio
    optimizer, model, _ = prepared(name, ratio / unit)
    first = last = _largest(model)
    for _ in range(STEPS):
        step(optimizer, model, CHANGES[name])
        last = _largest(model)
        if last > MOST * first:
            break
    return last / first


def row(name: str) -> tuple[str, str, str]:
    """(what the loop does, optimizer, threshold) as the page has them."""
    return name, CHANGES[name].optimizer, f"{prepared(name, 1.0)[2].threshold:.6g}"


def _largest(model: Any) -> float:
    return max(float(p.detach().abs().max()) for p in model.parameters())


# One step: v is a matrix, w a multiple of it.
V = np.random.default_rng(3).standard_normal((4, 3))
EXACT = {"ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 40}
LR, C = 0.8, 0.05


class Line(nn.Module):
    """½⟨v, w⟩²"""

    def __init__(self, w: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self) -> Any:
        return 0.5 * torch.sum(torch.tensor(V) * self.w) ** 2


def by_torch(make: Callable[[Any], Any], clip: float | None = None, **told: Any) -> Any:
    def run(w: Any) -> tuple[float, Any]:
        model = Line(w)
        optimizer = make(model.parameters())
        monitor = attach(optimizer, model, loss_fn=own_loss, every=1, sharpness=False, **told)
        model().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return monitor.records[0].threshold, model.w.detach().numpy()

    return run


def by_optax(transform: Any, norm: Any = None, **told: Any) -> Any:
    def loss(w: Any) -> Any:
        return 0.5 * jnp.sum(V * w) ** 2

    def run(w: Any) -> tuple[float, Any]:
        params = {"w": jnp.asarray(w)}
        of = {"lr": LR, "every": 1, "sharpness": False} | told
        monitor = geodiag_jax.Monitor(lambda p: loss(p["w"]), norm, **of)
        state = transform.init(params)
        updates, state = transform.update({"w": jax.grad(loss)(params["w"])}, state, params)
        new = optax.apply_updates(params, updates)
        return monitor.observe(0, params, new, state).threshold, np.asarray(new["w"])

    return run


class Inside(torch.optim.Optimizer):
    """Clips what it received inside of its step."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(LR * p.grad * min(1.0, C / float(p.grad.norm())))


CLIPPED = optax.chain(optax.clip_by_global_norm(C), optax.sgd(LR))
PLAIN_MUON = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **EXACT}
NAMES = {"l2": geodiag.norms.L2(), "linf": geodiag.norms.Linf(), "muon": geodiag.norms.Muon()}
# By name: the norm of S, what is told, and the step.
ONE = {
    "`clip_grad_norm_` at 0.05, `SGD`": ("l2", "", by_torch(lambda p: SGD(p, LR), C)),
    "an optimizer that clips at 0.05 inside": (
        "l2",
        "`norm=`, `update=`, `clip_norm=0.05`",
        by_torch(Inside, norm="l2", update=geodiag.Update(LR), clip_norm=C),
    ),
    "`chain(clip_by_global_norm(0.05), sgd)`": (
        "l2",
        "`norm=`, `lr=`, `clip_norm=0.05`",
        by_optax(CLIPPED, "l2", clip_norm=C),
    ),
    "`SignSGD`": ("linf", "", by_torch(lambda p: zoo.SignSGD(p, LR))),
    "`Lion`, β₁ = 0": ("linf", "", by_torch(lambda p: zoo.Lion(p, LR, (0.0, 0.9)))),
    "optax `lion`, b1 = 0": (
        "linf",
        "`lr=`, `b1`",
        by_optax(optax.lion(LR, 0.0, weight_decay=0.0), hyperparams={"b1": 0.0}),
    ),
    "`Muon`, exact polar factor": (
        "muon",
        "",
        by_torch(lambda p: torch.optim.Muon(p, LR, **PLAIN_MUON)),
    ),
    "optax `contrib.muon`, exact polar factor": (
        "muon",
        "`lr=`, `beta`",
        by_optax(
            optax.contrib.muon(
                LR, EXACT["ns_coefficients"], 10, beta=0.0, nesterov=False, adaptive=False
            ),
            hyperparams={"beta": 0.0},
        ),
    ),
}


def told(name: str) -> tuple[str, str]:
    """(what is run, what is told) as the page has them."""
    return name, ONE[name][1] or "nothing"


def one_step(name: str, ratio: float) -> float:
    """The growth of |⟨v, w⟩| in a step from where S is so much of the threshold."""
    norm, _, run = ONE[name]
    v = V.T if "optax" in name and norm == "muon" else V  # optax's matrices are (in, out)
    S = float(NAMES[norm].bind(Space.of({"w": v})).dual({"w": v})) ** 2
    unit = S / run(V.copy())[0]  # in proportion to 1/‖g‖
    w = V * unit / ratio
    _, new = run(w)
    return float(abs(np.sum(V * new)) / np.sum(V * w))
