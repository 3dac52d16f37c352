"""The update rule that a Monitor is given."""

from __future__ import annotations

from typing import Any

from geodiag.core.validation import is_number
from geodiag.errors import ArgumentError, shown
from geodiag.optimizers.thresholds import Update


def check_rule(lr: Any, update: Any) -> None:
    """Check ``lr=`` and ``update=`` of a Monitor, short of calling them.

    Raises:
        ArgumentError: both are given, or one of them cannot be used.
    """
    if lr is not None and update is not None:
        raise ArgumentError("lr= and update= both state the update rule", do="pass one of them")
    if lr is not None and not callable(lr):
        if not is_number(lr):
            raise ArgumentError("lr= must be a number or a function of the step", got=shown(lr))
        Update(lr).threshold(None)
    if isinstance(update, Update):
        update.threshold(None)
    elif update is not None and not callable(update):
        raise ArgumentError(
            "update= must be an Update or a function of the step", got=shown(update)
        )


def rule_at(step: int, lr: Any, update: Any) -> Update | None:
    """The rule at a step, as ``lr=`` or ``update=`` states it.

    Raises:
        ArgumentError: the function that gives it returns something else.
    """
    if lr is not None:
        return Update(float(lr(step) if callable(lr) else lr))
    rule = update(step) if callable(update) else update
    if rule is not None and not isinstance(rule, Update):
        raise ArgumentError("update= must return an Update", got=type(rule).__name__)
    return rule
