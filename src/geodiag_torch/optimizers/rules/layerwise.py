"""Optimizers in norms that are maxima over tensors, and NonEuclideanGD in any."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from geodiag.errors import ArgumentError, NormError
from geodiag.norms import L2, ByParameter, Linf, MaxOver, Muon, Norm, Spectral
from geodiag.optimizers.geometry import Radii, UnknownRule
from geodiag.optimizers.thresholds import Update
from geodiag_torch.optimizers.rules.base import Family, Slot, minimizing, relative_rates
from geodiag_torch.optimizers.rules.quadratic import Descent


class Steepest(Family):
    """NonEuclideanGD, in its own norm."""

    def __init__(self, norm: Norm, normalized: bool) -> None:
        self.own, self.normalized = norm, normalized

    def norm(self, slots: list[Slot]) -> Norm:
        rates = relative_rates(slots)
        if rates is None or set(rates.values()) == {1.0}:
            return self.own
        if self._is_plain_l2():
            return Descent().norm(slots)
        return by_rate(self.own, rates) if self._is_product() else self.own

    def rule(self, slots: list[Slot]) -> Update:
        rates = relative_rates(slots)
        if rates is None:
            raise UnknownRule("the learning rate of a group is not positive")
        same = set(rates.values()) == {1.0}
        if not (same or self._is_plain_l2() or self._is_product()):
            raise UnknownRule("the groups' learning rates differ, and no norm expresses that")
        if not (slots[0].whole or self._is_plain_l2() or self._is_product()):
            raise UnknownRule("where= leaves out parameters that the step depends on")
        return Update(slots[0].lr, normalized=self.normalized)

    def _is_plain_l2(self) -> bool:
        return isinstance(self.own, L2) and not self.normalized

    def _is_product(self) -> bool:
        """Whether each group's part of a step is its own, whatever the others are."""
        return self.normalized and isinstance(self.own, (Linf, MaxOver))


class SignDescent(Family):
    """w⁺ = w − η sign(m): SignSGD, Signum, Lion."""

    def norm(self, slots: list[Slot]) -> Norm:
        rates = relative_rates(slots)
        return Linf() if rates is None else by_rate(Linf(), rates)

    def rule(self, slots: list[Slot]) -> Update:
        if relative_rates(slots) is None:
            raise UnknownRule("the learning rate of a group is not positive")
        minimizing(slots)
        return normalized_rule(slots)


class MuonDescent(Family):
    """w⁺ = w − η r UVᵀ, with the radius r of one of three implementations.

    "torch": torch.optim.Muon, by its ``adjust_lr_fn``; "original": that of Muon's author, where a
    kernel's radius is that of its last two axes; "moonlight": 0.2·√max(rows, cols).
    """

    def __init__(self, version: str) -> None:
        self.version = version

    def check(self, slots: list[Slot]) -> None:
        others = [s.name for s in slots if not self._is_muons(s)]
        if others:
            raise ArgumentError(
                "this optimizer treats some parameters by Muon, and others by Adam: two geometries",
                got=f"{', '.join(map(repr, others[:4]))} by Adam",
                do="choose the matrices with where=, or say norm=",
            )
        for s in slots:
            if s.param.dim() not in (2, 4):
                raise ArgumentError(
                    f"Muon's update of {s.name!r} is not known", got=f"shape {tuple(s.param.shape)}"
                )

    def norm(self, slots: list[Slot]) -> Norm:
        self.check(slots)
        rates = relative_rates(slots) or {s.name: 1.0 for s in slots}
        rules = {s.group.get("adjust_lr_fn") or "original" for s in slots}
        plain = self.version == "torch" and len(rules) == 1 and set(rates.values()) == {1.0}
        if plain and (rule := rules.pop()) in Muon.rules:
            return Muon(rule)
        return Spectral(Radii(tuple((s.name, self._radius(s) * rates[s.name]) for s in slots)))

    def rule(self, slots: list[Slot]) -> Update:
        if relative_rates(slots) is None:
            raise UnknownRule("the learning rate of a group is not positive")
        return normalized_rule(slots)

    def _is_muons(self, slot: Slot) -> bool:
        if self.version == "moonlight":
            return bool(slot.state.get("use_muon", True))
        return bool(slot.group.get("use_muon", True))

    def _radius(self, slot: Slot) -> float:
        shape = slot.param.shape
        if self.version == "original":
            return math.sqrt(max(1.0, shape[-2] / shape[-1]))
        if self.version == "moonlight":
            return 0.2 * math.sqrt(max(shape[:2]))
        rule: Callable[..., float] | None = Muon.rules.get(slot.group["adjust_lr_fn"] or "original")
        if rule is None:
            raise NormError(f"Muon's adjust_lr_fn {slot.group['adjust_lr_fn']!r} is not known")
        return rule(slot.name, (shape[0], shape[1]))


def normalized_rule(slots: list[Slot]) -> Update:
    """The rule of an update of fixed length, whatever momentum and decay are called."""
    group = slots[0].group
    betas = group.get("betas")
    momentum = float(betas[0] if betas else group.get("momentum", 0.0))
    decay = max(float(s.group.get("weight_decay", s.group.get("wd", 0.0))) for s in slots)
    return Update(slots[0].lr, normalized=True, momentum=momentum, weight_decay=decay)


def by_rate(norm: Norm, rates: Mapping[str, float]) -> Norm:
    """``norm``, a maximum over tensors, with each learning rate as the radius of its tensors."""
    if set(rates.values()) == {1.0}:
        return norm
    part = Spectral(norm.radii) if isinstance(norm, Muon) else norm
    names: dict[float, list[str]] = {}
    for name, rate in rates.items():
        names.setdefault(rate, []).append(re.escape(name))
    patterns = {rate: f"^(?:{'|'.join(each)})$" for rate, each in names.items()}
    return ByParameter(
        dict.fromkeys(patterns.values(), part), MaxOver, {p: r for r, p in patterns.items()}
    )
