"""The slots of one rule as a single slot of all their entries.

A step that depends on each entry alone is compared with its rule by a few operations then, however
many tensors there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

from geodiag.blocks import Array, Blocks
from geodiag.core.spaces import Space
from geodiag.optimizers.slots import Family, Slot

NAME = "merged"
LIMIT = 2**22  # entries; beyond them copies cost more than operations
ARRAYS = ("gradient", "first_moment", "earlier_moment", "second_moment", "mean_gradient")
_numbers = attrgetter(
    "lr", "momentum", "nesterov", "dampening", "weight_decay", "decoupled", "maximize", "steps",
    "second_decay", "eps", "eps_in_root",
)  # fmt: skip


class Merged(NamedTuple):
    """The arguments of a comparison, with one tensor in place of several."""

    slots: Sequence[Slot]
    space: Space
    here: Blocks
    there: Blocks
    gradient: Blocks | None


def merged(
    family: Family,
    slots: Sequence[Slot],
    space: Space,
    here: Blocks,
    there: Blocks,
    gradient: Blocks | None,
) -> Merged | None:
    """All as one tensor; None where the slots differ, or tensors matter."""
    first = slots[0]
    if len(slots) == 1 or not family.entrywise or space.split or space.size > LIMIT:
        return None
    if any(s.more for s in slots) or len({_numbers(s) for s in slots}) > 1:
        return None

    def joined(blocks: Blocks) -> Blocks:
        return {NAME: space.ravel(blocks)}

    arrays: dict[str, Array] = {}
    for field in ARRAYS:
        found = {s.name: x for s in slots if (x := getattr(s, field)) is not None}
        if found and (len(found) < len(slots) or len({x.dtype for x in found.values()}) > 1):
            return None
        arrays[field] = joined(found)[NAME] if found else None
    return Merged(
        [replace(first, name=NAME, **arrays)],
        Space({NAME: (space.size,)}, {}, space.asarray, joints=space.joints),
        joined(here),
        joined(there),
        None if gradient is None else joined(gradient),
    )
