"""The parts of an optax optimizer with several geometries, as contrib.muon is for a whole model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from geodiag.blocks import Blocks
from geodiag.core.spaces import Space
from geodiag.monitoring.observation import Observation
from geodiag.monitoring.parts import SEVERAL, Part, compare_step, part_of
from geodiag.optimizers.clipping import Clipping
from geodiag.optimizers.geometry import Geometry
from geodiag.optimizers.joint import label_of, parts_of
from geodiag.optimizers.thresholds import Update
from geodiag_jax.optimizers.geometry import latest
from geodiag_jax.optimizers.readers import slots_of


def read_parts(
    states: tuple[Any, Any], space: Space, lr: Any, hyperparams: Mapping[str, Any]
) -> dict[str, Geometry]:
    """By name, the geometries that no norm joins; empty where one joins all.

    ``states``: after and before the step. ``lr``: None where the state has it.
    """
    after, before = latest(states)
    given = dict(hyperparams) | ({} if lr is None else {"learning_rate": float(lr)})
    found = parts_of(slots_of(after, space, given, before))
    if len(found) == 1:
        return {}
    names = {label_of(slots): slots for slots in found}
    return {
        name: Geometry(slots, space.select(s.name for s in slots), name)
        for name, slots in names.items()
    }


def as_parts(found: Mapping[str, Geometry]) -> dict[str, Part]:
    """With their norms, and rules as stated."""
    return {name: part_of(geometry) for name, geometry in found.items()}


def ends_of(pending: Observation, points: Any) -> tuple[Blocks, Blocks] | None:
    """w and w⁺ of an observed step; None where none is."""
    if points is None:
        return None
    here, there = (
        pending.problem.point(x) if y is None else y
        for x, y in zip(points, (pending.here, pending.there), strict=True)
    )
    pending.there = there
    return here, there


def rule_of_parts(
    pending: Observation,
    parts: Mapping[str, Geometry],
    ends: tuple[Blocks, Blocks] | None,
    unit: float,
    clipping: Clipping | None = None,
) -> Update:
    """Give each part its rule, as far as the step does not contradict it; all have none."""
    lr = math.nan
    for label, geometry in parts.items():
        own = pending.parts[label]
        own.update = geometry.update()
        lr = own.update.lr if math.isnan(lr) else lr
        if ends is not None and pending.oracle is not None:
            compare_step(own, geometry, ends, pending.oracle.gradient(), unit, clipping)
    return Update(lr, unknown=SEVERAL)
