"""Optimizers in quadratic norms: SGD in ℓ2, Adam, AdamW and RMSprop in that of their state."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from geodiag.errors import NormError
from geodiag.norms import L2, Norm, Preconditioned
from geodiag.optimizers.geometry import UnknownRule
from geodiag.optimizers.thresholds import Update
from geodiag_torch.optimizers.rules.base import Family, Slot, minimizing, one, relative_rates
from geodiag_torch.sharding.dtensors import ours

# Groups may differ in weight decay where that moves the threshold by no more than this.
IMMATERIAL = 0.01


class Quadratic(Family):
    """w⁺ = w − η P⁻¹m with a diagonal P; a group's own η divides its part of P."""

    def diagonal(self, slot: Slot) -> Tensor | float:
        """P of one parameter, without its group's learning rate."""
        return 1.0

    def norm(self, slots: list[Slot]) -> Norm:
        rates = relative_rates(slots) or dict.fromkeys((s.name for s in slots), 1.0)
        found = {s.name: self.diagonal(s) / rates[s.name] for s in slots}
        if all(isinstance(p, float) and p == 1.0 for p in found.values()):
            return L2()
        dtype = torch.float32
        for s in slots:
            dtype = torch.promote_types(dtype, s.param.dtype)
        p = {k: x.to(dtype) if isinstance(x, Tensor) else x for k, x in found.items()}
        return Preconditioned(
            (
                lambda d: {k: x * p[k] for k, x in d.items()},
                lambda g: {k: x / p[k] for k, x in g.items()},
            )
        )

    def with_decay(self, update: Update, slots: list[Slot], decoupled: bool) -> Update:
        """``update`` with the groups' weight decay, in units of the first group's η."""
        rates = relative_rates(slots)
        if rates is None:
            raise UnknownRule("the learning rate of a group is not positive")
        decays = [float(s.group.get("weight_decay", 0.0)) * rates[s.name] for s in slots]
        low, high = (
            replace(update, weight_decay=d, decoupled=decoupled and d > 0)
            for d in (min(decays), max(decays))
        )
        bounds = float(high.threshold(None)), float(low.threshold(None))
        if bounds[1] - bounds[0] > IMMATERIAL * abs(bounds[0]):
            raise UnknownRule("the groups differ in weight decay")
        return high


class Descent(Quadratic):
    """torch.optim.SGD."""

    def rule(self, slots: list[Slot]) -> Update:
        minimizing(slots)
        momentum = float(one(slots, "momentum"))
        if momentum and one(slots, "dampening"):
            raise UnknownRule("none is established for momentum with dampening")
        nesterov = bool(momentum and one(slots, "nesterov"))
        update = Update(slots[0].lr, momentum=momentum, nesterov=nesterov)
        return self.with_decay(update, slots, decoupled=False)


class Stateful(Quadratic):
    """P = √v + ε, with v from the optimizer's state: there is none before the first step."""

    stateful = True

    def diagonal(self, slot: Slot) -> Tensor | float:
        if not slot.state:
            raise NormError(
                f"the preconditioner is not known yet at {slot.name!r}",
                got="no state in the optimizer",
                do="wait for its first step; leave parameters without gradients out with where=",
            )
        p = ours(self.root(slot.state, slot.group))
        if not bool((p > 0).all() & torch.isfinite(p).all()):
            raise NormError(f"the preconditioner is not positive and finite at {slot.name!r}")
        return p

    @abstractmethod
    def root(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """√v + ε of one parameter, as a new tensor."""


class Adaptive(Stateful):
    """torch.optim.Adam and AdamW.

    P = (1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + ε): then w⁺ = w − η P⁻¹m holds with the uncorrected average m
    (arXiv 2207.14484). P is that of the last step taken.
    """

    def __init__(self, decoupled: bool) -> None:
        self.decoupled = decoupled

    def root(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        first, second = (float(b) for b in group["betas"])
        t = float(state["step"])
        v: Tensor = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        corrected = at_least_float32(v) / (1 - second**t) if t else v * math.nan
        return (corrected.sqrt() + float(group["eps"])).mul_(1 - first**t)

    def rule(self, slots: list[Slot]) -> Update:
        minimizing(slots)
        momentum = float(one(slots, "betas")[0])
        update = Update(slots[0].lr, momentum=momentum, ema=momentum > 0)
        # AdamW is Adam with this option from torch 2.7 on, and a class of its own before.
        decoupled = [s.group.get("decoupled_weight_decay", self.decoupled) for s in slots]
        if not all(decoupled):
            no_decay(slots)
        return self.with_decay(update, slots, decoupled=all(decoupled))


class RootMeanSquare(Stateful):
    """torch.optim.RMSprop."""

    def root(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        v = at_least_float32(state["square_avg"])
        if group["centered"]:
            v = v - at_least_float32(state["grad_avg"]).square()
        return v.sqrt() + float(group["eps"])

    def rule(self, slots: list[Slot]) -> Update:
        minimizing(slots)
        no_decay(slots)
        update = Update(slots[0].lr, momentum=float(one(slots, "momentum")))
        return self.with_decay(update, slots, decoupled=False)


def no_decay(slots: list[Slot]) -> None:
    """P also divides the gradient of coupled weight decay, which then shifts no eigenvalue."""
    if any(float(s.group["weight_decay"]) for s in slots):
        raise UnknownRule("none is established for coupled weight decay with a preconditioner")


def at_least_float32(x: Tensor) -> Tensor:
    """``x``, or a float32 copy where it has fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
