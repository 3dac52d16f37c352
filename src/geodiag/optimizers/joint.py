"""Several update rules on one model: the norm that joins them, where there is one.

Each rule moves tensors of its own. On a quadratic of Hessian H all of them together are

    linear filters, w_i − η_i P_i⁻¹u_i    at their edge where λ_max(H) = 1 in Σ T_i ⟨d_i, P_i d_i⟩
    plain descents in norms ‖·‖_i         at their edge where S = 2 in Σ ‖d_i‖_i²/η_i
    normalized descents                   at their edge where S/‖g‖* = 2 in max_i ‖d_i‖_i/η_i

with T_i the threshold of rule i alone. The first holds for rules whose own modes leave the unit
circle at −1 alone (:func:`geodiag.optimizers.filters.crosses_at_end`): with c_i the ratio whose
real values are the limits of rule i, a common mode v has Σ Im(c_i)|v_i|² = 0, and on the upper half
of the circle all Im(c_i) have one sign. The others are steepest descent in a norm of all tensors
(arXiv 2603.05002). Rules of the last kind have no norm in common with the others: they are *parts*.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from geodiag.blocks import Blocks
from geodiag.core.spaces import Space
from geodiag.core.validation import own_arithmetic
from geodiag.errors import ArgumentError
from geodiag.norms import ByParameter, L2Over, MaxOver, Norm
from geodiag.norms.composite import Group
from geodiag.optimizers.comparison import Comparison, compare
from geodiag.optimizers.families import Quadratic
from geodiag.optimizers.filters import crosses_at_end
from geodiag.optimizers.slots import Differ, Family, NoThreshold, Slot, relative_rates
from geodiag.optimizers.thresholds import Update

Slots = Sequence[Slot]


def by_family(slots: Slots) -> list[Slots]:
    """The slots of each family."""
    return _grouped(slots, [s.family.kind for s in slots])


def parts_of(slots: Slots) -> list[Slots]:
    """The slots that have one norm together; one part where all have."""
    return _grouped(slots, [s.family.joins for s in slots])


def label_of(slots: Slots) -> str:
    """The name of a part, an identifier."""
    return "_".join(dict.fromkeys(s.family.label for s in slots))


def joined(slots: Slots) -> Family | None:
    """One family for all slots; None where no norm joins them."""
    if len({s.family.joins for s in slots}) > 1:
        return None
    groups = [rule for group in by_family(slots) for rule in _by_rule(group)]
    return slots[0].family if len(groups) == 1 else Joint(groups)


def compare_all(
    slots: Slots,
    space: Space,
    here: Blocks,
    there: Blocks,
    gradient: Blocks | None = None,
    unit: float = 0.0,
) -> Comparison:
    """:func:`geodiag.optimizers.comparison.compare` of slots of any families."""
    groups = by_family(slots)
    found = []
    for group in groups:
        names = [s.name for s in group]
        own = space if len(groups) == 1 else space.select(names)
        w, new = ({name: x[name] for name in names} for x in (here, there))
        g = None if gradient is None else {name: gradient[name] for name in names}
        with own_arithmetic():  # also of gradients that are not finite
            found.append(compare(group[0].family, group, own, w, new, g, unit))
    if len(found) == 1:
        return found[0]
    scales = [
        said.scale
        for said, group in zip(found, groups, strict=True)
        if not group[0].family.scale_free
    ]
    unknown = [
        f"{group[0].family.label}: {said.unknown}"
        for said, group in zip(found, groups, strict=True)
        if said.unknown
    ]
    if scales and max(scales) > 1.05 * min(scales):
        unknown.append("the optimizers' gradients were scaled by different factors")
    caveats = dict.fromkeys(said.caveat for said in found if said.caveat)
    rate = all(said.rate for said in found)
    seen = all(said.seen for said in found)
    scale = min(scales, default=1.0)
    return Comparison("; ".join(unknown), "; ".join(caveats), rate, scale, seen)


class Joint(Family):
    """Rules that differ from group to group, in the norm that joins them."""

    def __init__(self, groups: Sequence[Slots]) -> None:
        self.groups = groups
        self.stateful = any(group[0].family.stateful for group in groups)
        self.joins = groups[0][0].family.joins

    def check(self, slots: Slots, space: Space) -> None:
        for group in self.groups:
            group[0].family.check(group, space.select(_names(group)))

    def norm(self, slots: Slots, space: Space) -> Norm:
        parts = []
        for group, weight in zip(self.groups, self._weights(), strict=True):
            names = _names(group)
            norm = group[0].family.norm(group, space.select(names))
            parts.append((names, norm, 1.0 / math.sqrt(weight) if self.joins == "l2" else weight))
        return _ByName(parts, L2Over if self.joins == "l2" else MaxOver)

    def update(self, slots: Slots) -> Update:
        rules = [group[0].family.update(group) for group in self.groups]
        caveat = "; ".join(dict.fromkeys(rule.caveat for rule in rules if rule.caveat))
        if self.joins == "max":
            decay, momentum = (
                max(getattr(rule, field) for rule in rules)
                for field in ("weight_decay", "momentum")
            )
            return replace(rules[0], momentum=momentum, weight_decay=decay, caveat=caveat)
        if not all(isinstance(group[0].family, Quadratic) for group in self.groups):
            plain = Update(rules[0].lr)
            if any(replace(rule, lr=plain.lr) != plain for rule in rules):
                raise NoThreshold(
                    "with momentum or decay one is established in quadratic norms only"
                )
        for rule in rules:
            if not crosses_at_end(rule.linear, rule.lr * rule.weight_decay * rule.decoupled):
                raise NoThreshold("none is established for several averages beside other rules")
        if not all(rule.threshold(None) > 0 for rule in rules):
            raise NoThreshold("the weight decay of a group leaves none above 0")
        return replace(rules[0], caveat=caveat)

    def _weights(self) -> list[float]:
        """Relative to the first group: thresholds where the norm is quadratic, else rates."""
        slots = [group[0] for group in self.groups]
        rates = relative_rates(slots)
        if self.joins == "max":
            return [rates[s.name] for s in slots]
        try:
            limits = [float(g[0].family.update(g).threshold(None)) for g in self.groups]
        except (NoThreshold, ArgumentError):  # ``update`` says why
            limits = [math.nan]
        if not all(0.0 < limit < math.inf for limit in limits):
            return [1.0 / rates[s.name] for s in slots]
        return [limit / limits[0] for limit in limits]


class _ByName(ByParameter):
    """Norms of groups of tensors, which are given by their names."""

    def __init__(
        self, parts: Iterable[tuple[tuple[str, ...], Norm, float]], over: type[L2Over | MaxOver]
    ) -> None:
        self._parts, self.over, self.joint = list(parts), over, over.joint  # type: ignore[misc]

    def groups(self, space: Space) -> list[Group]:
        return list(self._parts)

    def __repr__(self) -> str:
        return f"{self.over.__name__}({', '.join(repr(norm) for _, norm, _ in self._parts)})"


def _by_rule(group: Slots) -> list[Slots]:
    """Slots of one family, split by their rules where these differ."""
    if not all(0.0 < s.lr < math.inf for s in group):
        return [group]
    try:
        group[0].family.update(group)
    except Differ:
        if isinstance(group[0].family, Quadratic):
            rules = [replace(s.family.update([s]), lr=1.0) for s in group]
            decays = [s.lr * s.weight_decay for s in group]
            return _grouped(group, list(zip(rules, decays, strict=True)))
    except (NoThreshold, ArgumentError):  # as the family says where it is asked
        pass
    return [group]


def _grouped(slots: Slots, keys: Sequence[Hashable]) -> list[Slots]:
    found: dict[Hashable, list[Slot]] = {}
    for s, key in zip(slots, keys, strict=True):
        found.setdefault(key, []).append(s)
    return list(found.values())


def _names(group: Slots) -> tuple[str, ...]:
    return tuple(s.name for s in group)
