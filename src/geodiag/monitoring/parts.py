"""S and ratio of the parts of a step that has several geometries, as of Muon beside AdamW.

No norm joins a part whose step follows the gradient's length and one whose does not. A record then
has no S and no ratio of the run, which one part's would only seem to be. It has ζ, which is of the
whole step, and of each part by its name the S with all other parameters held fixed, and its ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geodiag.blocks import Blocks
from geodiag.errors import one_line
from geodiag.monitoring.sharpness_tracker import SharpnessTracker
from geodiag.norms import Norm
from geodiag.optimizers.clipping import Clipping
from geodiag.optimizers.geometry import Geometry
from geodiag.optimizers.thresholds import Update
from geodiag.oracles import CountingOracle, Oracle
from geodiag.solvers.restriction import Restriction

SEVERAL = "the step has two geometries, which no norm joins"
ONCE = (
    "of each geometry S and ratio are with all other parameters held fixed; D and the curvature "
    "along the step are in ℓ2"
)
FIELDS = ("sharpness", "threshold", "ratio")


@dataclass
class Part:
    """Tensors of one geometry, beside others of another one.

    Attributes:
        names: of the tensors.
        joins: of their families, see :mod:`geodiag.optimizers.joint`.
        norm: in which their optimizer descends.
        update: their rule; None until it is known.
        dual_norm: ‖g‖* of their gradient, once S is measured.
    """

    names: tuple[str, ...]
    joins: str
    norm: Norm
    update: Update | None = None
    dual_norm: float | None = None


class PartTrackers(dict[str, SharpnessTracker]):
    """A tracker of S for each part, made where it is first asked for."""

    def __init__(self, *options: Any) -> None:
        super().__init__()
        self._options = options

    def __missing__(self, name: str) -> SharpnessTracker:
        self[name] = SharpnessTracker(*self._options)
        return self[name]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs; empty where there are no parts."""
        return {"parts": {name: each.state_dict() for name, each in self.items()}} if self else {}

    def loaded(self, state: Mapping[str, Any]) -> PartTrackers:
        """Trackers with that state. ``KeyError``, ``TypeError``, ``ValueError``: it is none."""
        found = PartTrackers(*self._options)
        for name, each in dict(state.get("parts", {})).items():
            found[str(name)].load_state_dict(each)
        return found


def compare_step(
    part: Part,
    geometry: Geometry,
    ends: tuple[Blocks, Blocks],
    gradient: Blocks,
    unit: float,
    clipping: Clipping | None = None,
) -> None:
    """Take the step that was taken into the rule of a part; ``clipping`` is of all parts."""
    w, new, g = ({name: x[name] for name in part.names} for x in (*ends, gradient))
    if part.update is not None and not part.update.unknown:
        part.update = geometry.follow(part.update, (w, new), g, unit, clipping)


def part_of(geometry: Geometry) -> Part:
    """The part of these slots, with its rule as it is stated."""
    names = tuple(s.name for s in geometry.slots)
    return Part(names, geometry.family.joins, geometry.norm(), geometry.update())


def measure_parts(
    oracle: Oracle,
    parts: Mapping[str, Part],
    values: dict[str, Any],
    trackers: PartTrackers,
) -> tuple[list[str], list[str]]:
    """S of each part, into ``values`` as ``sharpness_`` and its name. Returns reasons and notes."""
    reasons, notes = [], []
    for label, part in parts.items():
        values |= {f"{field}_{label}": math.nan for field in FIELDS}
        try:
            own = CountingOracle(Restriction(part.names)(oracle))
            found = trackers[label].measure(own, part.norm, part.norm.bind(own.space))
        except Exception as e:
            reasons.append(f"{label}: {one_line(e)}")
            continue
        said = [f"{label}: {note}" for note in found.notes]
        if found.status.failed:
            reasons += said
            continue
        values[f"sharpness_{label}"] = found.value
        part.dual_norm = found.dual_norm
        notes += said
    return reasons, notes


def compare_parts(parts: Mapping[str, Part], values: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Threshold and ratio of each part, into ``values``. Returns reasons and notes."""
    reasons, notes = [], []
    for label, part in parts.items():
        limit, why = math.nan, "its rule is not known"
        if part.update is not None:
            limit, why = _limit(part, part.update)
        if why:
            reasons.append(f"{label}: no threshold: {why}")
            continue
        if part.update is not None and part.update.caveat:
            notes.append(f"{label}: {part.update.caveat}")
        sharpness = values[f"sharpness_{label}"]
        values |= {f"threshold_{label}": limit, f"ratio_{label}": sharpness / limit}
    return reasons, notes


def _limit(part: Part, update: Update) -> tuple[float, str]:
    """The threshold, or NaN and why there is none."""
    if update.unknown:
        return math.nan, update.unknown
    if update.normalized and part.dual_norm is None:
        return math.nan, "it needs the dual norm of the gradient, which is not known"
    found = update.threshold(part.dual_norm)
    if found != found or found <= 0:
        return math.nan, found.provenance if found != found else "it would not be above 0"
    return float(found), ""
