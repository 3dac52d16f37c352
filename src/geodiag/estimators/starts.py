"""``start=``: blocks, an earlier result, or its state, which may have been read from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from geodiag.blocks import Array, Blocks, all_finite, dot, is_array, place
from geodiag.core.validation import as_blocks, is_mapping_of_names, is_real
from geodiag.errors import ArgumentError, shown
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.results import Searched, SharpnessResult, WarmStart, is_state


def as_start(start: Any, oracle: Oracle, norm: Norm) -> tuple[Blocks | None, int | None]:
    """``start=`` as blocks of the oracle, and its age: from blocks, a result, or its ``state``.

    The age is None for blocks, and where the result was measured in another norm.

    Raises:
        ShapeError: names or shapes other than the parameters'.
        ArgumentError: the direction is zero or not finite, or the state is malformed.

    Examples:
        >>> H, norm = np.diag([2.0, 1.0]), geodiag.norms.Linf()
        >>> earlier = geodiag.sharpness(H, norm)
        >>> blocks, age = geodiag.estimators.as_start(earlier, geodiag.problem(H).at(), norm)
        >>> [bool(blocks[name] is earlier.direction[name]) for name in blocks]
        [True]
    """
    if start is None or (isinstance(start, Mapping) and not start):
        return None, None
    age = None
    if isinstance(start, SharpnessResult):
        if start.status.failed:  # after a failure a loop goes on without a start
            return None, None
        if not is_state(start.state):
            start = start.direction
        elif _usable(start, oracle):
            age = start.state["age"] if start.state["norm"] == repr(norm) else None
            return {name: start.direction[name] for name in oracle.names}, age
        else:
            start = start.state | {"witness": start.direction}
    if is_state(start) and set(start) != set(oracle.names):
        warm = WarmStart.from_dict(start)
        age, start = warm.age if warm.norm == repr(norm) else None, arrays_of(warm.witness)
    blocks = as_blocks(start, oracle.space, "start")
    if not bool(all_finite(blocks)) or float(dot(blocks, blocks)) == 0.0:
        raise ArgumentError(
            "start= must be finite and not zero", do="pass a direction, or leave start= out"
        )
    return blocks, age


def last_search(start: Any, oracle: Oracle) -> Searched:
    """What ``start=``, which :func:`as_start` has accepted, tells of its last search."""
    state = start.state if isinstance(start, SharpnessResult) else start
    known = is_state(state) and set(state) != set(oracle.names)
    return WarmStart.from_dict(state).searched if known else Searched()


def _usable(result: SharpnessResult, oracle: Oracle) -> bool:
    """Whether the witness needs no conversion and no check.

    A value that is neither NaN nor 0 is that of a finite direction that is not 0.
    """
    point, witness = oracle.point(), result.direction
    if not math.isfinite(result.value) or result.value == 0 or set(witness) != set(point):
        return False
    return all(_kind(witness[name]) == _kind(x) for name, x in point.items())


def _kind(x: Array) -> tuple[Any, ...]:
    return type(x), x.dtype, tuple(x.shape), place(x)


def holds_arrays(x: Any) -> bool:
    """Whether ``x`` has arrays of real numbers by name, or lists of such numbers."""
    try:
        return is_mapping_of_names(x) and all(map(is_real, arrays_of(x).values()))
    except ArgumentError:
        return False


def arrays_of(witness: Any) -> Any:
    """The arrays of a state; they are lists if it was read from JSON."""
    if not isinstance(witness, Mapping):
        return witness
    try:
        return {name: x if is_array(x) else np.asarray(x) for name, x in witness.items()}
    except (TypeError, ValueError, RecursionError) as e:  # lists that are no array
        raise ArgumentError("the witness in start= holds no arrays", got=shown(witness)) from e
