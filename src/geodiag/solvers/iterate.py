"""The driver of every ascent: repeats a step through the oracle's ``loop``.

A solver owns a pure ``step`` from iterates to iterates. The driver counts iterations, decides when
to stop and keeps the history. Nothing here waits for the host but the loop's own condition, so an
adapter may compile all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from geodiag.blocks import Array, Blocks, array_namespace, device
from geodiag.core.stacks import dots, join, pick
from geodiag.oracles.base import Oracle

# An ascent has converged after so many successive relative improvements below rtol.
PATIENCE = 2


class Iterates(NamedTuple):
    """K directions inside the unit ball that are improved together."""

    direction: Blocks  # (K, …): stacked
    image: Blocks  # (K, …): H · direction
    value: Array  # (K,): ⟨direction, image⟩
    stalled: Array  # (K,) integers: successive iterations that improved by less than rtol
    fresh: Array  # (K,) booleans: whether the image is a product itself, not a combination


class Run(NamedTuple):
    """Iterates after some iterations."""

    iterates: Iterates
    iterations: Array  # 0-d integer; each took one product per member
    history: Array  # (limit,): the best value after each iteration; NaN beyond


Step = Callable[[Iterates], Iterates]


def begin(direction: Blocks, image: Blocks) -> Iterates:
    """Iterates before the first iteration."""
    value = dots(direction, image)
    xp = array_namespace(value)
    stalled = xp.zeros(value.shape, dtype=xp.int32, device=device(value))
    return Iterates(direction, image, value, stalled, stalled == 0)


def run(
    oracle: Oracle,
    step: Step,
    iterates: Iterates,
    limit: int,
    rtol: float,
    patience: int = PATIENCE,
    max_steps: Array | None = None,
) -> Run:
    """Repeat ``step`` until no member has improved by ``rtol`` in ``patience`` successive steps.

    It also ends at a value that is not finite, and after ``limit`` steps, the length of the
    history, or ``max_steps``, a 0-d array. All members take part in every step.
    """
    value, limit = iterates.value, max(limit, 0)
    xp = array_namespace(value)
    unset = xp.full((limit,), float("nan"), dtype=value.dtype, device=device(value))
    zero = xp.zeros((), dtype=xp.int32, device=device(value))
    state = Run(iterates, zero, unset)
    if not limit:
        return state
    most = (
        xp.full((), limit, dtype=zero.dtype, device=device(value))
        if max_steps is None
        else xp.astype(max_steps, zero.dtype)
    )
    places = xp.arange(limit, dtype=zero.dtype, device=device(value))

    def go_on(s: Run) -> Array:
        p = s.iterates
        improving = xp.any(p.stalled < patience) & xp.all(xp.isfinite(p.value))
        return (s.iterations < most) & improving

    def body(s: Run) -> Run:
        old, new = s.iterates, step(s.iterates)
        improved = new.value - old.value > rtol * xp.abs(new.value)
        stalled = xp.where(improved, xp.zeros_like(old.stalled), old.stalled + 1)
        history = xp.where(places == s.iterations, xp.max(new.value), s.history)
        return Run(new._replace(stalled=stalled), s.iterations + 1, history)

    return oracle.loop(go_on, body, state)


def best(iterates: Iterates, count: int = 1) -> Iterates:
    """The ``count`` members of largest value, the best first."""
    xp = array_namespace(iterates.value)
    order = xp.argsort(iterates.value, descending=True, stable=True)[:count]
    stacks = pick(iterates.direction, order), pick(iterates.image, order)
    return Iterates(*stacks, *(xp.take(each, order) for each in iterates[2:]))


def mapped(iterates: Iterates, f: Callable[[Blocks], Blocks]) -> Iterates:
    """The same in another form of the parameters."""
    return iterates._replace(direction=f(iterates.direction), image=f(iterates.image))


def together(*groups: Iterates) -> Iterates:
    """Several groups as one."""
    xp = array_namespace(groups[0].value)
    first, second, *rest = zip(*groups, strict=True)
    return Iterates(join(*first), join(*second), *(xp.concat(list(each)) for each in rest))
