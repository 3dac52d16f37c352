"""When to measure: every so many steps, where a function says so, or within a share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from geodiag.core.validation import is_number, is_whole
from geodiag.errors import ArgumentError, shown


class Schedule:
    """Decides when a measurement is due, and adds up the time that measurements took.

    Under a budget, one is due once the time spent, with half of what the next one will take, is
    within the budget. So at any moment after the second one, measurements have taken between 1/1.5
    and 1.34 of the budget, provided that each takes about as long as the last.

    Args:
        every: the least number of steps between two measurements, or a function of the step.
        budget: the share of the time since the first measurement began, or None.

    Raises:
        ArgumentError: one of them cannot be used.
    """

    def __init__(self, every: int | Callable[[int], bool], budget: float | None = None) -> None:
        if not callable(every) and not (is_whole(every) and every >= 1):
            raise ArgumentError(
                "every= must be a number of steps, at least 1, or a function of the step",
                got=shown(every),
            )
        if budget is not None and not (is_number(budget) and 0 < budget < 1):
            raise ArgumentError(
                "budget= must lie between 0 and 1, a share of the time", got=shown(budget)
            )
        self._every, self._budget = every, budget
        self._began: float | None = None
        self._step: int | None = None
        self._spent = self._cost = 0.0  # in seconds: of all measurements, of the last

    @property
    def by_step_alone(self) -> bool:
        """Whether the number of the step alone decides, so that all ranks agree."""
        return self._budget is None and not callable(self._every)

    def due(self, step: int) -> bool:
        """Whether to measure at this step."""
        if callable(self._every):
            chosen = bool(self._every(step))
        elif self._budget is None:
            return step % self._every == 0
        else:
            chosen = self._step is None or not 0 <= step - self._step < self._every
        if self._budget is None or self._began is None or not chosen:
            return chosen
        elapsed = time.perf_counter() - self._began
        return self._spent + self._cost / 2 <= self._budget * elapsed

    def begin(self, step: int) -> float:
        """Start the account of a measurement. Returns the time now."""
        now = time.perf_counter()
        if self._began is None:
            self._began = now
        self._step, self._cost = step, 0.0
        return now

    def spend(self, began: float) -> float:
        """Add the seconds since ``began`` to the account of the current measurement."""
        seconds = time.perf_counter() - began
        self._spent += seconds
        self._cost += seconds
        return seconds

    def state_dict(self) -> dict[str, Any]:
        """The account, as plain numbers."""
        elapsed = None if self._began is None else time.perf_counter() - self._began
        return {"step": self._step, "elapsed": elapsed, "spent": self._spent, "cost": self._cost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue an account; the time in between does not count.

        Raises ``KeyError``, ``TypeError`` or ``ValueError`` if it is none, before any change.
        """
        step, elapsed = state["step"], state["elapsed"]
        spent, cost = state["spent"], state["cost"]
        seconds = (spent, cost) if elapsed is None else (spent, cost, elapsed)
        if not all(is_number(x) and 0 <= x < float("inf") for x in seconds):
            raise ValueError("an account that is not of seconds")
        if step is not None and not is_whole(step):
            raise ValueError("a step that is no whole number")
        self._began = None if elapsed is None else time.perf_counter() - float(elapsed)
        self._step = None if step is None else int(step)
        self._spent, self._cost = float(spent), float(cost)
