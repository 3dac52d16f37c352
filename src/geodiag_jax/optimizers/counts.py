"""What an optax state counts: which need not be the loop's steps, nor steps of the same kind."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax

ACCUMULATES = "the optimizer collects gradients (MultiSteps) and did not apply them at this step"
SYNCHRONISED = "the optimizer went back to its slow parameters at this step (lookahead)"


class Counts(NamedTuple):
    """What a state counts."""

    asked: int | None  # what the schedule was asked with at the step; None: the state has no count
    apart: str = ""  # why the step is not one of the rule; "" if it may be


def read_counts(opt_state: Any, after: bool) -> Counts:
    """The counts of a state, which is that ``after`` the step or else before it.

    Examples:
        >>> import jax.numpy as jnp
        >>> sgd = optax.MultiSteps(optax.sgd(optax.constant_schedule(0.1)), 2)
        >>> params = {"w": jnp.ones(3)}
        >>> state = sgd.init(params)
        >>> for _ in range(3):
        ...     _, state = sgd.update(params, state, params)
        >>> counts = read_counts(state, after=True)
        >>> counts.asked, counts.apart == ACCUMULATES
        (1, True)
    """
    scheduled = _all(opt_state, "count", "ScaleByScheduleState")
    applied = _all(opt_state, "gradient_step", "MultiStepsState")
    accumulates = after and any(_all(opt_state, "mini_step", "MultiStepsState"))
    synchronised = after and 0 in _all(opt_state, "steps_since_sync", "LookaheadState")
    apart = ACCUMULATES if accumulates else SYNCHRONISED if synchronised else ""
    counted = scheduled or applied
    if len(counted) != 1:
        return Counts(None, apart)
    return Counts(counted.pop() - (after and not accumulates), apart)


def rates(given: Any, step: int, counts: Counts) -> list[Any]:
    """The learning rate; of a schedule, that at the optimizer's own count first."""
    if not callable(given):
        return [given]
    counted = {step if counts.asked is None else counts.asked: None, step: None}
    return [given(count) for count in counted]


def _all(opt_state: Any, field: str, of: str) -> set[int]:
    try:
        found = optax.tree_utils.tree_get_all_with_path(opt_state, field)
        return {int(x) for path, x in found if getattr(path[-1], "tuple_name", "") == of}
    except Exception:  # no state of optax, or a donated one: the reader says why
        return set()
