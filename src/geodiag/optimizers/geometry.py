"""The geometry of an optimizer: its norm and its update rule, read from slots at one step."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from geodiag.blocks import Blocks, scale
from geodiag.core.spaces import Space
from geodiag.errors import ArgumentError, NormError
from geodiag.norms import Norm
from geodiag.optimizers.clipping import Clipping
from geodiag.optimizers.comparison import Comparison, follow
from geodiag.optimizers.joint import compare_all, joined, parts_of
from geodiag.optimizers.slots import NoThreshold, Slot
from geodiag.optimizers.thresholds import Update

# Gradients at averages of the iterates, and steps that are clipped entry by entry.
NO_SINGLE_NORM = ("schedulefree", "sophia")


class Geometry:
    """The geometry in which all measured parameters together are updated.

    ArgumentError if no norm joins their update rules, or it can be seen not to be known. ``of`` is
    the optimizer's name in notes; ``compared`` is a cache of norms compared, by their keys.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        space: Space,
        of: str = "the optimizer",
        compared: dict[Hashable, bool] | None = None,
    ) -> None:
        self.slots, self._space, self._of = slots, space, of
        self._compared = {} if compared is None else compared
        family = joined(slots)
        if family is None:
            first, other = (part[0] for part in parts_of(slots))
            raise two_geometries(
                f"{first.name!r} by {type(first.family).__name__}, "
                f"{other.name!r} by {type(other.family).__name__}"
            )
        self.family = family
        self.family.check(slots, space)

    def norm(self) -> Norm:
        """The norm in which the optimizer descends."""
        return self.family.norm(self.slots, self._space)

    def update(self, measured: Norm | None = None) -> Update:
        """The update rule, for S in the norm ``measured`` (default: the optimizer's).

        Where no threshold applies, its ``unknown`` gives the reason.
        """
        try:
            self._require_known_rates()
            if measured is not None and not self._is_own(measured):
                raise NoThreshold(f"{measured!r} is not the geometry of {self._of}")
            if any(s.maximize for s in self.slots):
                raise NoThreshold("maximize=True ascends")
            return self.family.update(self.slots)
        except NoThreshold as e:
            return Update(self.slots[0].lr, unknown=str(e))

    def compare(
        self, here: Blocks, there: Blocks, gradient: Blocks | None = None, unit: float = 0.0
    ) -> Comparison:
        """:func:`geodiag.optimizers.joint.compare_all` of a step with these slots."""
        return compare_all(self.slots, self._space, here, there, gradient, unit)

    def follow(
        self,
        rule: Update,
        ends: tuple[Blocks, Blocks],
        gradient: Blocks,
        unit: float,
        clipping: Clipping | None = None,
    ) -> Update:
        """The rule, as far as the step between these ends does not contradict it."""
        said = self.compare(*ends, gradient, unit)
        if clipping is None:
            return follow(rule, said)

        def again(factor: float) -> Comparison:
            return self.compare(*ends, scale(gradient, factor), unit)

        return clipping.follow(rule, said, again)

    def _require_known_rates(self) -> None:
        for i, s in enumerate(self.slots):
            if s.unknown:
                raise NoThreshold(s.unknown)
            if not 0.0 < s.lr < math.inf:
                raise NoThreshold(f"the learning rate {'of a group ' if i else ''}is not positive")

    def _is_own(self, norm: Norm) -> bool:
        """Whether ``norm`` is the optimizer's; norms with keys are compared once."""
        try:
            own = self.norm()
        except NormError as e:
            raise NoThreshold(e.what) from e
        key = (norm.key, own.key)
        if None in key:
            return same_norm(norm, own, self._space)
        if key not in self._compared:
            self._compared[key] = norm.key == own.key or same_norm(norm, own, self._space)
        return self._compared[key]


def same_norm(a: Norm, b: Norm, space: Space) -> bool:
    """Whether two norms agree, by their duals at two random gradients.

    The duals, since these depend on every tensor; a value may depend on one alone.
    """
    rng = np.random.default_rng(0)
    first, second = a.bind(space), b.bind(space)
    for _ in range(2):
        g = space.random(rng)
        if not np.isclose(float(first.dual(g)), float(second.dual(g)), rtol=1e-4):
            return False
    return True


def unknown_geometry(of: str, got: str | None = None) -> ArgumentError:
    """The error for an optimizer without a reader."""
    name = f"{of} {got or ''}".lower().replace("_", "")
    none = ": it descends in no single norm" if any(x in name for x in NO_SINGLE_NORM) else ""
    return ArgumentError(
        f"the geometry of {of} is not known{none}",
        got=got or of,
        do='say in which norm to measure: norm="l2" (gradient descent), "linf" (sign descent), '
        '"spectral" or "muon" (orthogonalised updates), "block", or a Norm such as '
        "geodiag.norms.Preconditioned(P); update=geodiag.Update(lr=…) then gives the threshold",
    )


def two_geometries(got: str) -> ArgumentError:
    """The error for an optimizer with several update rules."""
    return ArgumentError(
        "this optimizer treats its parameters in two ways: two geometries",
        got=got,
        do="choose those of one kind with where=, or say norm=",
    )
