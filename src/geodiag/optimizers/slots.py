"""Slots: what an optimizer holds for each parameter, in no framework's words.

An adapter has one reader per optimizer, which turns the framework's state into slots. What follows
from them is in :mod:`geodiag.optimizers.families`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from geodiag.blocks import Array, Blocks
from geodiag.core.spaces import MatrixView, Space
from geodiag.norms import Norm
from geodiag.optimizers.newton_schulz import MUON_POLYNOMIALS
from geodiag.optimizers.thresholds import Update


class NoThreshold(Exception):
    """Why no threshold applies."""


class Differ(NoThreshold):
    """What the groups differ in, so that no one rule is that of all."""


@dataclass
class Slot:
    """One measured parameter w, and what its optimizer holds for it.

    A reader fills what its family asks for. Arrays have the parameter's shape. Made for every
    parameter at each record, and so not frozen: that would take five times as long.
    """

    name: str
    family: Family
    lr: float  # η; NaN where it is not known
    momentum: float = 0.0  # β of the first moment m
    nesterov: bool = False  # the step is along g + βm
    dampening: float = 0.0  # τ in m ← βm + (1 − τ)g
    weight_decay: float = 0.0  # γ
    decoupled: bool = False  # the decay shrinks w (AdamW) and is not added to the gradient
    maximize: bool = False  # the step ascends
    steps: int = 0  # t, how many were taken
    first_moment: Array | None = None  # m after the step
    earlier_moment: Array | None = None  # m before it, where that is known
    gradient: Array | None = None  # g as the optimizer received it, without its own decay
    second_moment: Array | None = None  # v after the step; None before the first
    second_decay: float | None = None  # β₂, where v is still to be divided by 1 − β₂ᵗ
    mean_gradient: Array | None = None  # ḡ, where v is centered to v − ḡ²
    eps: float = 0.0  # ε, added to √v
    eps_in_root: float = 0.0  # the same under the root
    matrix: tuple[int, int] | None = None  # (outputs, inputs) of w as it is orthogonalised
    view: MatrixView | None = None  # its axes, others stack matrices; None: as the space says
    rms: float | None = None  # see geodiag.norms.muon.muon_radius
    polynomials: Sequence[tuple[float, float, float]] = MUON_POLYNOMIALS  # that orthogonalise w
    more: Mapping[str, Any] = field(default_factory=dict)  # what one family alone asks for
    unknown: str = ""  # what is missing to know the update rule, for the record's note


class Family(ABC):
    """Optimizers with one kind of update rule. ``slots``: all that is measured, at least one."""

    # Whether the norm depends on the optimizer's state, and so changes from step to step.
    stateful = False
    # In fields of a record: an identifier.
    label = "optimizer"
    # Whether each entry's step depends on that entry alone, so that tensors do not matter.
    entrywise = False
    # How its norm joins others' where they share a model: "l2" where the step follows the
    # gradient's length, "max" where it does not.
    joins = "l2"

    @property
    def kind(self) -> Hashable:
        """What is equal where the rules are, but for the slots."""
        return type(self)

    def check(self, slots: Sequence[Slot], space: Space) -> None:
        """Raise a GeodiagError where the norm can be seen not to be known."""
        return None

    @abstractmethod
    def norm(self, slots: Sequence[Slot], space: Space) -> Norm:
        """The norm in which the optimizer descends; NormError if the state is not enough for it."""

    @abstractmethod
    def update(self, slots: Sequence[Slot]) -> Update:
        """The update rule in that norm, with the first slot's learning rate, or NoThreshold."""

    # Whether a factor of the gradient changes neither the step nor the threshold.
    scale_free = False

    def received(self, slot: Slot) -> Array | None:
        """The gradient of the step, as the optimizer received it; None where it is not known."""
        return slot.gradient

    def direction(self, slot: Slot, gradient: Array | None) -> Array | None:
        """(w − w⁺)/η without decoupled decay, as far as slot and gradient determine it."""
        return None

    def directions(
        self, slots: Sequence[Slot], gradients: Blocks | None, space: Space
    ) -> list[Blocks]:
        """:meth:`direction` of all; several where the optimizer may take any of them."""
        found = {}
        for s in slots:
            found[s.name] = self.direction(s, None if gradients is None else gradients[s.name])
            if found[s.name] is None:
                return []
        return [found]

    def rounding(self, slots: Sequence[Slot], gradients: Blocks | None, space: Space) -> float:
        """The relative error that rounding inside of the optimizer may make in the step."""
        return 0.0

    def needs_gradient(self, slot: Slot) -> bool:
        """Whether :meth:`direction` depends on the gradient, besides the slot."""
        return True

    def other_rules(
        self, slots: Sequence[Slot], gradients: Blocks | None
    ) -> list[tuple[str, Blocks]]:
        """Directions by settings that differ from the slots', with their names."""
        return []


def relative_rates(slots: Sequence[Slot]) -> dict[str, float]:
    """Each learning rate relative to the first; all 1 where one is not positive and finite."""
    if not all(0.0 < s.lr < math.inf for s in slots):
        return dict.fromkeys((s.name for s in slots), 1.0)
    return {s.name: s.lr / slots[0].lr for s in slots}


def shared(slots: Sequence[Slot], field: str) -> Any:
    """The value of a field that all slots must share, or NoThreshold."""
    values = {getattr(s, field) for s in slots}
    if len(values) > 1:
        raise Differ(f"the groups differ in {field}")
    return values.pop()
