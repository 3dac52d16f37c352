"""Four steps of an optimizer, each measured, with an event before the third."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
import torch

import geodiag
import geodiag_jax
import geodiag_torch
from tests import truth
from tests.networks import jax_networks, torch_networks
from tests.networks.lengths import Length
from tests.networks.network import Network, Truth
from tests.networks.torch_networks import Module

STEPS = 4
TORCH_EVENTS = ("none", "freeze", "unfreeze", "add", "split", "load", "clip", "replace", "rate")
TORCH_PARTS = ("unused", "tied", "frozen", "scale", "linear", "decay", "own weight")
TORCH_OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "linf": lambda p: geodiag_torch.NonEuclideanGD(p, lr=0.01, norm="linf"),
}
JAX_EVENTS = ("none", "clip", "scale", "mask", "every second")
JAX_PARTS = ("unused", "scale", "float", "linear", "decay")
JAX_OPTIMIZERS: dict[str, Any] = {"sgd": optax.sgd(0.02), "adam": optax.adam(0.01)}


@dataclass(frozen=True)
class Step:
    """A record, and what it is of."""

    record: geodiag.Record
    held: list[str]  # the parameters that the optimizer holds
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    plain: bool = False  # whether the optimizer is SGD, whose step should be −lr·g

    def fault(self, network: Network, norm: Length) -> str | None:
        """What is wrong without a word; D is right, or NaN."""
        record = self.record
        if not self.held:
            return None if record.note else "nothing is held"
        at, shapes = Truth(network).at(self.before, self.held), self._shapes(self.held)
        low, top = norm.lower(at.H, shapes), norm.upper(at.H, shapes)
        # A tracked value that is a lower bound may be a tenth below the maximum; of searches in
        # norms that are not quadratic each ends at one of several.
        off = max(2e-3 * abs(top), 2e-4 * float(np.abs(at.H).max()))
        loose = 0.1 if norm.name == "l2" else 0.3
        below = off if record.bound == "EXACT" else max(off, loose * abs(low))
        if not low - below <= record.sharpness <= top + off and not record.note:
            return f"S = {record.sharpness} at step {record.step} where {low} <= S <= {top}"
        s = truth.flat({k: self.after[k] - self.before[k] for k in self.held})
        rate = 2 / record.threshold  # in force, with what was done to the gradient
        off = float(np.linalg.norm(s + rate * at.gradient)) / max(np.linalg.norm(s), 1e-30)
        if self.plain and not math.isnan(record.ratio) and off > 0.01:
            return f"a ratio of {record.ratio} for a step that is {off:.0%} off −2g/threshold"
        D, (true, noise) = record.directional_smoothness, self.smoothness(network, norm)
        if math.isnan(D):
            return None if record.note else "no D and no note"
        if not abs(D - true) <= 1e-6 * abs(true) + noise:
            return f"D = {D} at step {record.step} where D = {true}"
        return None

    def smoothness(self, network: Network, norm: Length) -> tuple[float, float]:
        """D of all that has moved, and how far rounding may take it."""
        moved = [k for k in self.before if np.any(self.after[k] != self.before[k])]
        if not moved:
            return math.nan, math.nan
        whole, later = (Truth(network).at(p, moved) for p in (self.before, self.after))
        s = truth.flat({k: self.after[k] - self.before[k] for k in moved})
        size = abs(whole.loss) + float(np.abs(whole.gradient) @ np.abs(s))
        # What the rounding of w⁺ does to the loss there: where layers cancel, all of it.
        size += float(
            np.abs(later.gradient) @ np.abs(truth.flat({k: self.after[k] for k in moved}))
        )
        length = norm.of(s, self._shapes(moved)) ** 2
        D = 2 * (later.loss - whole.loss - whole.gradient @ s) / length
        return D, 64 * float(np.finfo(network.dtype).eps) * size / length

    def _shapes(self, names: list[str]) -> dict[str, tuple[int, ...]]:
        return {k: self.before[k].shape for k in names}


def torch_run(network: Network, event: str, kind: str, norm: str) -> list[Step]:
    """Under :func:`geodiag_torch.attach`."""
    model = Module(network)
    start = list(model.parameters())
    late = [start.pop()] if event == "add" and len(start) > 1 else []
    if event == "unfreeze" and len(start) > 2:
        start[0].requires_grad_(False)
    if "own weight" in network.parts:
        start.append(model.own)
    optimizer = TORCH_OPTIMIZERS[kind](start)
    batch = torch_networks.batch(network)
    monitor = geodiag_torch.attach(
        optimizer, model, norm, loss_fn=torch_networks.loss, data=batch, every=1
    )
    taken = []
    for step in range(STEPS):
        if step == STEPS // 2:
            _happen(event, model, optimizer, late)
        optimizer.zero_grad()
        loss = torch_networks.loss(model, batch)
        if loss.requires_grad:
            loss.backward()
        if event == "clip":
            torch.nn.utils.clip_grad_norm_(start, 1e-3)
        held = {id(p) for g in optimizer.param_groups for p in g["params"] if p.requires_grad}
        names = [k for k, p in _named(model).items() if id(p) in held]
        before = _values(model)
        optimizer.step()
        taken.append((names, before, _values(model)))
    monitor.detach()
    return [
        Step(r, *of, kind == "sgd" and norm == "l2")
        for r, of in zip(monitor.records, taken, strict=True)
    ]


def _happen(event: str, model: Module, optimizer: Any, late: list[Any]) -> None:
    weight = model.layers[0].weight
    if event == "freeze":
        weight.requires_grad_(False)
    elif event == "unfreeze":
        for p in model.parameters():
            p.requires_grad_(True)
    elif event == "add":
        if late:
            optimizer.add_param_group({"params": late})
    elif event == "split":
        first = optimizer.param_groups[0]
        moved = first["params"].pop()
        if first["params"]:
            optimizer.add_param_group({"params": [moved], "lr": 10 * first["lr"]})
        else:
            first["params"].append(moved)
    elif event == "load":
        optimizer.load_state_dict(optimizer.state_dict())
    elif event == "replace":
        model.layers[-1].bias = torch.nn.Parameter(model.layers[-1].bias.detach() + 1)
    elif event == "rate":
        for group in optimizer.param_groups:
            group["lr"] *= 3


def _named(model: Module) -> dict[str, Any]:
    found = dict(model.named_parameters())
    return found | ({"own": model.own} if hasattr(model, "own") else {})


def _values(model: Module) -> dict[str, np.ndarray]:
    return {k: p.detach().double().numpy().copy() for k, p in _named(model).items()}


def jax_run(network: Network, event: str, kind: str, norm: str) -> list[Step]:
    """Under a :class:`geodiag_jax.Monitor`, whose optimizer may change the gradient."""
    optimizer = _chain(event, JAX_OPTIMIZERS[kind])
    loss, batch = jax_networks.loss(network), jax_networks.batch(network)
    params = jax_networks.params(network)
    state = optimizer.init(params)
    gradient = jax.grad(loss)
    lr = 0.02 if kind == "sgd" else 0.01
    taken = []
    with geodiag_jax.Monitor(loss, norm, data=batch, every=1, lr=lr) as monitor:
        for step in range(STEPS):
            updates, state = optimizer.update(gradient(params, *batch), state, params)
            after = optax.apply_updates(params, updates)
            monitor.observe(step, params, after, state)
            taken.append((jax_networks.leaves(params), jax_networks.leaves(after)))
            params = after
    pairs = zip(monitor.records, taken, strict=True)
    return [
        Step(r, list(before), before, after, kind == "sgd" and norm == "l2")
        for r, (before, after) in pairs
    ]


def _chain(event: str, inner: Any) -> Any:
    if event == "clip":
        return optax.chain(optax.clip_by_global_norm(1e-3), inner)
    if event == "scale":
        return optax.chain(inner, optax.scale(0.5))
    if event == "mask":
        frozen = {"frozen": optax.set_to_zero(), "moved": inner}
        return optax.multi_transform(frozen, _labels)
    return optax.MultiSteps(inner, 2) if event == "every second" else inner


def _labels(params: Any) -> Any:
    labels = jax.tree.map(lambda x: "moved", params)
    labels["layers"][0]["bias"] = "frozen"
    return labels
