"""A population of starts, most of them tried for free, and the ascent of the best.

``Cold`` spends its products in three parts: a short Lanczos run, whose products make a surrogate of
H; on it many starts are ascended at no cost (lmo of the gradient, of the top Ritz vector, rounded
random vectors of its range), and only its best distinct maxima are tried on H itself; these, and
the starts that were known before, race until one is left, which climbs to its maximum. ``Explore``
adds a round of new starts to what a population has reached, with all products so far.

Both are programs (see :class:`geodiag.oracles.base.Program`): pure functions of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from geodiag.blocks import (
    Array,
    Blocks,
    all_finite,
    array_namespace,
    axpy,
    device,
    norm2,
    scale,
    where,
    zeros_like,
)
from geodiag.core.batched import join
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.solvers import iterate, ravel
from geodiag.solvers.iterate import Population
from geodiag.solvers.line_search import positive, segment
from geodiag.solvers.nystrom import Products, add, fit, krylov, propose, spare
from geodiag.solvers.program import NormProgram

# The Lanczos run starts from the gradient, which training aligns with the top of the spectrum, and
# from this much of a random direction, lest the rest be missed.
NOISE = 0.3
# Rows kept for the products of Explore.
SPARE = 24


@dataclass(frozen=True)
class Plan:
    """How many products go where."""

    krylov: int = 0  # to the surrogate
    candidates: int = 0  # starts that it proposes
    rehearsal: int = 0  # steps on the surrogate, which cost no product
    race: int = 2  # steps of every start before the worse half is left behind
    climb: int = 2  # steps of the last
    rtol: float = 1e-4
    calm: int = iterate.CALM  # steps in a row that gain less than rtol, and the ascent is over
    explored: bool = False  # whether Explore follows, and needs the products

    def spent(self, known: int) -> int:
        """The products spent at most, with ``known`` starts given."""
        members = known + self.candidates
        total = self.krylov + members + self.climb
        while members > 1:
            total += self.race * members
            members = (members + 1) // 2
        return total


class Outcome(NamedTuple):
    """What a program reached."""

    best: Population  # of one member
    values: Array  # (K,): what the starts had reached when the first of them was left behind
    history: Array  # the best value, iteration by iteration; NaN where none was made
    products: Products | None  # on the flat view, if there is one
    num_hvps: Array  # 0-d integer


@dataclass(frozen=True)
class Cold(NormProgram):
    """The search from nothing, or from known starts alone (``plan.krylov`` zero)."""

    plan: Plan

    def __call__(
        self,
        oracle: Oracle,
        known: Blocks | None,
        gradient: Blocks,
        noise: Blocks | None = None,
        mixtures: Array | None = None,
        room: Array | None = None,
    ) -> Outcome:
        """``known``: a stack of starts inside the unit ball. ``noise``: a random direction, and
        ``mixtures`` (N, krylov) standard normal numbers, for the surrogate. ``room``: steps of the
        climb, at most ``plan.climb``."""
        oracle, norm, view = ravel.view(oracle, self.norm)
        if view:
            known = None if known is None else view.flat_stack(known)
        plan, products = self.plan, None
        if plan.krylov:
            assert noise is not None
            assert mixtures is not None
            if view:
                gradient, noise = view.flat(gradient), view.flat(noise)
            first = axpy(
                NOISE / norm2(noise), noise, scale(gradient, 1 / positive(norm2(gradient)))
            )
            products, finite = _sound(krylov(oracle, first, plan.krylov))
            proposed = propose(
                oracle, norm, fit(products), mixtures, gradient,
                steps=plan.rehearsal, count=plan.candidates,
            )  # fmt: skip
            known = proposed if known is None else join(known, proposed)
        assert known is not None
        population = iterate.begin(known, oracle.hvps(known))
        if products is not None:
            value = population.value
            xp = array_namespace(value)
            population = population._replace(value=xp.where(finite, value, value + float("nan")))
            if plan.explored:
                products = add(
                    spare(products, SPARE), population.direction, population.image, plan.krylov
                )
            else:
                products = None
        run, values, history, spent = _race(oracle, norm, population, plan, room)
        spent = spent + plan.krylov
        return Outcome(_full(run, view), values, history, products, spent)


@dataclass(frozen=True)
class Explore(NormProgram):
    """A round: random starts and proposals of the surrogate, against the best so far."""

    plan: Plan

    def __call__(
        self,
        oracle: Oracle,
        best: Population,
        products: Products,
        gradient: Blocks,
        randoms: Blocks,
        mixtures: Array,
    ) -> Outcome:
        oracle, norm, view = ravel.view(oracle, self.norm)
        plan = self.plan
        if view:
            gradient, randoms = view.flat(gradient), view.flat_stack(randoms)
            best = best._replace(
                direction=view.flat_stack(best.direction), image=view.flat_stack(best.image)
            )
        proposed = propose(
            oracle, norm, fit(products), mixtures, gradient,
            steps=plan.rehearsal, count=plan.candidates, known=best.direction,
        )  # fmt: skip
        known = join(norm.lmos(randoms), proposed)
        population = iterate.begin(known, oracle.hvps(known))
        raced = iterate.run(
            oracle, _step(oracle, norm, plan), population, plan.race, plan.rtol, plan.calm
        )
        for each in (population, raced.population):
            products = add(products, each.direction, each.image, plan.krylov)
        leaders = iterate.together(best, iterate.best(raced.population))
        top = iterate.best(leaders)
        climbed = iterate.run(
            oracle, _step(oracle, norm, plan), top, plan.climb, plan.rtol, plan.calm
        )
        members = population.value.shape[0]
        spent = members * (1 + raced.iterations) + climbed.iterations
        return Outcome(
            _full(climbed.population, view),
            raced.population.value,
            climbed.history,
            products,
            spent,
        )


def _sound(products: Products) -> tuple[Products, Array]:
    """The products, zero if one of them is not finite, and whether all are: a factorisation of NaN
    may raise, or not end."""
    finite = all_finite(products.images)
    nothing = zeros_like(products.images)
    xp = array_namespace(products.inner)
    inner = xp.where(finite, products.inner, xp.zeros_like(products.inner))
    return Products(where(finite, products.images, nothing), inner), finite


def _race(
    oracle: Oracle, norm: Norm, population: Population, plan: Plan, room: Array | None
) -> tuple[Population, Array, Array, Array]:
    """Successive halving, then the climb of the last; with the products spent from the start on."""
    xp = array_namespace(population.value)
    step = _step(oracle, norm, plan)
    members = population.value.shape[0]
    spent = xp.full((), members, dtype=xp.int32, device=device(population.value))
    histories, values = [], population.value
    while members > 1:
        run = iterate.run(oracle, step, population, plan.race, plan.rtol, plan.calm)
        spent = spent + members * run.iterations
        histories.append(run.history)
        if not histories[1:]:
            values = run.population.value
        members = (members + 1) // 2
        population = iterate.best(run.population, members)
    run = iterate.run(oracle, step, population, plan.climb, plan.rtol, plan.calm, room)
    history = xp.concat([*histories, run.history])
    return run.population, values, history, spent + run.iterations


def _step(oracle: Oracle, norm: Norm, plan: Plan) -> iterate.Step:
    return lambda population: segment(norm, oracle.hvps, population)


def _full(population: Population, view: ravel.Flat | None) -> Population:
    if view is None:
        return population
    return population._replace(
        direction=view.full(population.direction), image=view.full(population.image)
    )
