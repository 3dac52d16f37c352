"""Where a loss keeps its state, and runs with or without a monitor."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import geodiag_torch
from tests.geodiag_torch.states import STATES, Holder, Lib

STEPS = 3


class Net(nn.Module):
    counted: Any = None  # where a class holds the state

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(dropout), nn.Tanh(), nn.Linear(4, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


GLOBAL: Any = None


def of_model(state: Lib, model: Any) -> Any:
    state.begin(model)
    return (lambda m, b: m(b[0]).square().mean() + state.use(m, m(b[0]))), model


def of_object_on_model(state: Lib, model: Any) -> Any:
    h = model.extra = Holder()
    state.begin(h)
    return (lambda m, b: m(b[0]).square().mean() + state.use(m.extra, m(b[0]))), h


def of_closure(state: Lib, model: Any) -> Any:
    h = Holder()
    state.begin(h)
    return (lambda m, b: m(b[0]).square().mean() + state.use(h, m(b[0]))), h


def of_global(state: Lib, model: Any) -> Any:
    global GLOBAL
    GLOBAL = Holder()
    state.begin(GLOBAL)

    def helper(x: Tensor) -> Any:
        return state.use(GLOBAL, x)

    return (lambda m, b: m(b[0]).square().mean() + helper(m(b[0]))), GLOBAL


class Trainer:
    def __init__(self, state: Lib) -> None:
        self.state = state
        state.begin(self)

    def loss(self, m: Any, b: Any) -> Any:
        return m(b[0]).square().mean() + self.state.use(self, m(b[0]))

    __call__ = loss


def of_bound_self(state: Lib, model: Any) -> Any:
    trainer = Trainer(state)
    return trainer.loss, trainer


def of_callable(state: Lib, model: Any) -> Any:
    trainer = Trainer(state)
    return trainer, trainer


def of_function(state: Lib, model: Any) -> Any:
    def loss(m: Any, b: Any) -> Any:
        return m(b[0]).square().mean() + state.use(loss, m(b[0]))

    state.begin(loss)
    return loss, loss


def of_hook(state: Lib, model: Any) -> Any:
    h = Holder()
    state.begin(h)
    model.body[4].register_forward_hook(lambda m, x, y: y + state.use(h, y.detach()))
    return (lambda m, b: m(b[0]).square().mean()), h


def of_default(state: Lib, model: Any) -> Any:
    h = Holder()
    state.begin(h)
    return (lambda m, b, h=h: m(b[0]).square().mean() + state.use(h, m(b[0]))), h


def of_far_away(state: Lib, model: Any) -> Any:
    """Further than is looked in each measurement."""
    h = Holder()
    state.begin(h)
    box = Holder()
    box.inner = Holder()
    box.inner.list = [{"h": h}]

    def loss(m: Any, b: Any) -> Any:
        return m(b[0]).square().mean() + state.use(box.inner.list[0]["h"], m(b[0]))

    return loss, h


PLACES = {
    "model": of_model,
    "object on model": of_object_on_model,
    "closure": of_closure,
    "global": of_global,
    "bound self": of_bound_self,
    "callable": of_callable,
    "function": of_function,
    "hook": of_hook,
    "default": of_default,
    "far away": of_far_away,
}


def everything(model: nn.Module, state: Lib, h: Any, optimizer: Any) -> list[Any]:
    """What a run leaves, to the bit."""
    tensors = [t.tolist() for t in model.state_dict().values()]
    modes = [m.training for m in model.modules()]
    slots = [str(s) for s in optimizer.state_dict()["state"].values()]
    rngs = [torch.get_rng_state().tolist(), str(random.getstate()), str(np.random.get_state())]
    return [tensors, modes, slots, rngs, state.said(h)]


def run(
    state: str,
    place: str,
    watched: bool,
    between: Callable[..., Any] | None = None,
    optimizer: Any = torch.optim.SGD,
    dropout: float = 0.0,
    wraps: Callable[[Any], Any] = lambda loss: loss,
    **options: Any,
) -> tuple[list[Any], list[Any]]:
    """What a short run leaves, and its records. ``wraps``: makes the loss that is measured.

    ``between(step, model, optimizer, loss)`` is called before each step, and may return another
    optimizer.
    """
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    model, kept = Net(dropout), STATES[state]
    loss, h = PLACES[place](kept, model)
    x = torch.randn(8, 3)
    made = optimizer(model.parameters(), lr=0.05)
    monitor = None
    records: list[Any] = []
    options = {"every": 1, "max_hvps": 4, **options}

    def attach() -> Any:
        return geodiag_torch.attach(made, model, "l2", loss_fn=wraps(loss), data=(x,), **options)

    if watched:
        monitor = attach()
    for step in range(STEPS):
        other = None if between is None else between(step, model, made, loss)
        made.zero_grad()
        loss(model, (x,)).backward()
        if other is not None:
            made = other
            if monitor is not None:
                records += monitor.records
                monitor.detach()
                monitor = attach()
        made.step()
    if monitor is not None:
        records += monitor.records
    return everything(model, kept, h, made), records
