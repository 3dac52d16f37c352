"""``start=``: blocks, an earlier result, or its state, which may have gone through JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from geodiag.blocks import Blocks, all_finite, dot, is_array
from geodiag.core.validation import as_blocks, is_mapping_of_names, is_real, is_whole
from geodiag.errors import ArgumentError, shown
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.results import SharpnessResult

STATE = {"witness", "age", "norm"}


def is_state(x: Any) -> bool:
    """Whether ``x`` has the parts of a state, and the types of these.

    The shapes of the witness are seen where it is used.
    """
    if not isinstance(x, Mapping) or set(x) != STATE:
        return False
    counted = is_whole(x["age"]) and x["age"] >= 0
    return counted and isinstance(x["norm"], str) and is_mapping_of_names(x["witness"])


def as_start(start: Any, oracle: Oracle, norm: Norm) -> tuple[Blocks | None, int | None]:
    """``start=`` as blocks of the oracle, and its age: from blocks, a result, or its ``state``.

    The age is None, as for blocks, where the result was measured in another norm.

    Raises:
        ShapeError: other names or shapes than the parameters'.
        ArgumentError: zero, or not finite.
    """
    if start is None or (isinstance(start, Mapping) and not start):
        return None, None
    age = None
    if isinstance(start, SharpnessResult):
        if start.status.failed:  # a loop that goes on after a failure begins anew
            return None, None
        start = start.state | {"witness": start.direction}
    if isinstance(start, Mapping) and set(start) == STATE != set(oracle.names):
        age = (
            _age(start) if isinstance(start["norm"], str) and start["norm"] == repr(norm) else None
        )
        start = arrays_of(start["witness"])
    blocks = as_blocks(start, oracle.space, "start")
    if not bool(all_finite(blocks)) or float(dot(blocks, blocks)) == 0.0:
        raise ArgumentError(
            "start= must be finite and not zero", do="pass a direction, or leave start= out"
        )
    return blocks, age


def _age(state: Mapping[str, Any]) -> int:
    if not is_whole(state["age"]) or state["age"] < 0:
        raise ArgumentError("the age in start= must be a count", got=shown(state["age"]))
    return int(state["age"])


def holds_arrays(x: Any) -> bool:
    """Whether ``x`` is a witness: arrays of real numbers by name, or lists of such numbers."""
    try:
        return is_mapping_of_names(x) and all(map(is_real, arrays_of(x).values()))
    except ArgumentError:
        return False


def arrays_of(witness: Any) -> Any:
    """The arrays of a state, which are lists where it went through JSON."""
    if not isinstance(witness, Mapping):
        return witness
    try:
        return {name: x if is_array(x) else np.asarray(x) for name, x in witness.items()}
    except (TypeError, ValueError, RecursionError) as e:  # of lists that are no array
        raise ArgumentError("the witness in start= holds no arrays", got=shown(witness)) from e
