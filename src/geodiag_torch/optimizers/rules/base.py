"""What a family of optimizers has to say, and what all of them read from the groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from geodiag.norms import Norm
from geodiag.optimizers.geometry import UnknownRule
from geodiag.optimizers.thresholds import Update


@dataclass(frozen=True)
class Slot:
    """One measured parameter, and what the optimizer holds for it."""

    name: str
    param: Tensor
    group: Mapping[str, Any]
    state: Mapping[str, Any]
    whole: bool  # whether every parameter of the optimizer is measured

    @property
    def lr(self) -> float:
        return float(self.group["lr"])


class Family(ABC):
    """Optimizers with one kind of geometry. ``slots``: what is measured, at least one."""

    # Whether the norm changes with the optimizer's state, or with its groups' rates alone.
    stateful = False

    def check(self, slots: list[Slot]) -> None:
        """Raise a GeodiagError where the geometry can be seen not to be known."""
        return None

    @abstractmethod
    def norm(self, slots: list[Slot]) -> Norm:
        """The norm in which the optimizer descends."""

    @abstractmethod
    def rule(self, slots: list[Slot]) -> Update:
        """The update rule in that norm, with the first group's learning rate.

        :class:`UnknownRule` is raised where no threshold applies.
        """


def relative_rates(slots: list[Slot]) -> dict[str, float] | None:
    """Each parameter's learning rate, relative to the first; None where one is not positive."""
    if any(not s.lr > 0.0 for s in slots):
        return None
    return {s.name: s.lr / slots[0].lr for s in slots}


def one(slots: list[Slot], option: str) -> Any:
    """The value of an option, which all groups must share."""
    values = {repr(s.group[option]): s.group[option] for s in slots}
    if len(values) > 1:
        raise UnknownRule(f"the groups differ in {option}")
    return next(iter(values.values()))


def minimizing(slots: list[Slot]) -> None:
    """No rule where the optimizer ascends."""
    if any(s.group.get("maximize") for s in slots):
        raise UnknownRule("maximize=True ascends")
