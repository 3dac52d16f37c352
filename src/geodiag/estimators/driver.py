"""The one loop: every iterative solver runs through the oracle's ``loop``.

A solver owns a pure ``step`` from state to state; the driver owns counting of iterations, the
stopping rule, non-finite detection and the history. Nothing in here syncs with the host except the
loop's own condition, so an adapter may compile the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from geodiag.blocks import Array, Blocks, array_namespace, device
from geodiag.errors import NonFiniteError
from geodiag.oracles.base import Oracle


class State(NamedTuple):
    """Where a solver stands: a direction on the unit sphere and its image under H."""

    direction: Blocks
    image: Blocks  # H · direction
    value: Array  # 0-d: ⟨direction, image⟩
    calm: Array  # 0-d integer: successive iterations without a noticeable improvement
    iteration: Array  # 0-d integer
    history: Array  # (limit,): the value after each iteration


Step = Callable[[State], State]

# "Until two successive relative improvements are below rtol."
CALM = 2


def begin(direction: Blocks, image: Blocks, value: Array) -> State:
    """The state before the first iteration."""
    xp = array_namespace(value)
    zero = xp.zeros((), dtype=xp.int32, device=device(value))
    return State(
        direction, image, value, zero, zero, xp.zeros((0,), dtype=value.dtype, device=device(value))
    )


def run(oracle: Oracle, step: Step, state: State, limit: int, rtol: float) -> State:
    """At most ``limit`` further steps, until two successive ones gain less than ``rtol``.

    Raises:
        NonFiniteError: the value became NaN or infinite.
    """
    if limit <= 0:
        return state
    xp = array_namespace(state.value)
    past = state.history
    zero = xp.zeros_like(state.iteration)
    fresh = xp.zeros((limit,), dtype=state.value.dtype, device=device(state.value))
    places = xp.arange(limit, dtype=zero.dtype, device=device(state.value))
    state = state._replace(calm=zero, iteration=zero, history=fresh)

    def go_on(s: State) -> Array:
        return (s.iteration < limit) & (s.calm < CALM) & xp.isfinite(s.value)

    def body(s: State) -> State:
        new = step(s)
        gain = new.value - s.value
        calm = xp.where(gain > rtol * xp.abs(new.value), xp.zeros_like(s.calm), s.calm + 1)
        history = xp.where(places == s.iteration, new.value, s.history)
        return new._replace(calm=calm, iteration=s.iteration + 1, history=history)

    state = oracle.loop(go_on, body, state)
    if not bool(xp.isfinite(state.value)):
        raise NonFiniteError(
            "a Hessian-vector product is not finite",
            got="NaN or infinity",
            do="check the parameters and the data; the training may have diverged",
        )
    return state._replace(history=xp.concat([past, state.history[: int(state.iteration)]]))


def converged(state: State) -> bool:
    """Whether the last :func:`run` stopped by its tolerance, not by its limit."""
    return bool(state.calm >= CALM)
