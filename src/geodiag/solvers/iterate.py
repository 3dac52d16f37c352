"""The one loop: every ascent runs through the oracle's ``loop``.

A solver owns a pure ``step`` from population to population; the driver owns the counting of
iterations, the stopping rule and the history. Nothing in here syncs with the host except the loop's
own condition, so an adapter may compile the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from geodiag.blocks import Array, Blocks, array_namespace, device
from geodiag.core.batched import dots, join, pick
from geodiag.oracles.base import Oracle

# "Until two successive relative improvements are below rtol."
CALM = 2


class Population(NamedTuple):
    """Where K directions inside the unit ball stand."""

    direction: Blocks  # (K, …): stacked
    image: Blocks  # (K, …): H · direction
    value: Array  # (K,): ⟨direction, image⟩
    calm: Array  # (K,) integers: successive iterations without a noticeable improvement
    fresh: Array  # (K,) booleans: whether the image is a product as asked, not a combination


class Run(NamedTuple):
    """A population after some iterations."""

    population: Population
    iterations: Array  # 0-d integer; each took one product per member
    history: Array  # (limit,): the best value after each iteration; NaN beyond


Step = Callable[[Population], Population]


def begin(direction: Blocks, image: Blocks) -> Population:
    """A population before its first iteration."""
    value = dots(direction, image)
    xp = array_namespace(value)
    calm = xp.zeros(value.shape, dtype=xp.int32, device=device(value))
    return Population(direction, image, value, calm, calm == 0)


def run(
    oracle: Oracle,
    step: Step,
    population: Population,
    limit: int,
    rtol: float,
    calm: int = CALM,
    room: Array | None = None,
) -> Run:
    """At most ``limit`` steps, until no member gains ``rtol`` in ``calm`` successive ones.

    Or until one is not finite. Members that have converged go along: a population steps as one.
    ``room``: fewer steps, 0-d, for a program that is compiled once and run with several budgets.
    """
    value, limit = population.value, max(limit, 0)
    xp = array_namespace(value)
    unset = xp.full((limit,), float("nan"), dtype=value.dtype, device=device(value))
    zero = xp.zeros((), dtype=xp.int32, device=device(value))
    state = Run(population, zero, unset)
    if not limit:
        return state
    most = (
        xp.full((), limit, dtype=zero.dtype, device=device(value))
        if room is None
        else xp.astype(room, zero.dtype)
    )
    places = xp.arange(limit, dtype=zero.dtype, device=device(value))

    def go_on(s: Run) -> Array:
        p = s.population
        busy = xp.any(p.calm < calm) & xp.all(xp.isfinite(p.value))
        return (s.iterations < most) & busy

    def body(s: Run) -> Run:
        old, new = s.population, step(s.population)
        gained = new.value - old.value > rtol * xp.abs(new.value)
        quiet = xp.where(gained, xp.zeros_like(old.calm), old.calm + 1)
        history = xp.where(places == s.iterations, xp.max(new.value), s.history)
        return Run(new._replace(calm=quiet), s.iterations + 1, history)

    return oracle.loop(go_on, body, state)


def best(population: Population, count: int = 1) -> Population:
    """The ``count`` members of largest value, the best first."""
    xp = array_namespace(population.value)
    order = xp.argsort(population.value, descending=True, stable=True)[:count]
    return Population(
        pick(population.direction, order),
        pick(population.image, order),
        xp.take(population.value, order),
        xp.take(population.calm, order),
        xp.take(population.fresh, order),
    )


def together(*populations: Population) -> Population:
    """Populations as one."""
    xp = array_namespace(populations[0].value)
    first, second, *rest = zip(*populations, strict=True)
    return Population(join(*first), join(*second), *(xp.concat(list(each)) for each in rest))
