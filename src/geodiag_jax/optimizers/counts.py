"""The count at which an optax optimizer asks its schedule, which need not be the loop's."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax


class Counts(NamedTuple):
    """What a state counts."""

    asked: int | None  # what the schedule was asked with at the step; None: the state has no count
    accumulates: bool  # MultiSteps has collected gradients, and applied none


def read_counts(opt_state: Any, after: bool) -> Counts:
    """The counts of a state, which is that ``after`` the step or else before it.

    Examples:
        >>> import jax.numpy as jnp
        >>> sgd = optax.MultiSteps(optax.sgd(optax.constant_schedule(0.1)), 2)
        >>> params = {"w": jnp.ones(3)}
        >>> state = sgd.init(params)
        >>> for _ in range(3):
        ...     _, state = sgd.update(params, state, params)
        >>> read_counts(state, after=True)
        Counts(asked=1, accumulates=True)
    """
    scheduled = _all(opt_state, "count", "ScaleByScheduleState")
    applied = _all(opt_state, "gradient_step", "MultiStepsState")
    accumulates = after and any(_all(opt_state, "mini_step", "MultiStepsState"))
    counted = scheduled or applied
    if len(counted) != 1:
        return Counts(None, accumulates)
    return Counts(counted.pop() - (after and not accumulates), accumulates)


def _all(opt_state: Any, field: str, of: str) -> set[int]:
    try:
        found = optax.tree_utils.tree_get_all_with_path(opt_state, field)
        return {int(x) for path, x in found if getattr(path[-1], "tuple_name", "") == of}
    except Exception:  # no state of optax, or a donated one: the reader says why
        return set()
