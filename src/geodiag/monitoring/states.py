"""The state of a Monitor, of which an interrupted run is taken up again."""

from __future__ import annotations

import copy
from typing import Any

from geodiag.errors import ArgumentError, one_line, shown
from geodiag.monitoring.critical_step import CriticalSteps
from geodiag.monitoring.parts import PartTrackers
from geodiag.monitoring.schedule import Schedule
from geodiag.monitoring.sharpness_tracker import SharpnessTracker


def loaded(
    state: Any,
    tracker: SharpnessTracker,
    parts: PartTrackers,
    schedule: Schedule,
    critical: CriticalSteps | None,
) -> tuple[SharpnessTracker, PartTrackers, Schedule, CriticalSteps | None]:
    """Copies of these with what :meth:`geodiag.Monitor.state_dict` returned.

    Raises:
        ArgumentError: ``state`` is something else.
    """
    try:
        if not isinstance(state, dict):
            raise TypeError(f"it is of type {type(state).__name__}")
        if not isinstance(state["version"], int) or state["version"] != 1:
            raise ValueError(f"version {shown(state['version'])}")
        tracker, schedule = copy.copy(tracker), copy.copy(schedule)
        tracker.load_state_dict(state["tracker"])
        schedule.load_state_dict(state["schedule"])
        parts = parts.loaded(state)
        critical = critical and CriticalSteps.loaded(dict(state.get("critical", {})))
        list(map(str, state.get("noted", ())))
    except (LookupError, TypeError, ValueError) as e:
        what, do = "this is not the state of a Monitor", "pass what state_dict() returned"
        raise ArgumentError(what, got=one_line(e), do=do) from e
    return tracker, parts, schedule, critical
