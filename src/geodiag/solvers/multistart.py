"""Search from many starts, most of which cost no product, and the ascent of the best.

``MultiStart`` spends its products in three parts. A short Lanczos run gives a Nyström approximation
of H. On it many starts ascend at no cost (lmo of the gradient, of the top Ritz vector, of random
vectors of its range), and only the best distinct maxima are tried on H itself. These and the given
starts go through successive halving, and the last one climbs to its maximum. ``Round`` adds new
starts to what was reached, with all products so far.

Both are programs (see :class:`geodiag.oracles.base.Program`): pure functions of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from geodiag.blocks import (
    Array,
    Blocks,
    array_namespace,
    axpy,
    device,
    finite_or_zero,
    norm2,
    positive,
    scale,
)
from geodiag.core.stacks import join
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.solvers import iterate, ravel
from geodiag.solvers.iterate import Iterates
from geodiag.solvers.line_search import segment
from geodiag.solvers.nystrom import Products, add, fit, krylov, propose, spare
from geodiag.solvers.program import NormProgram

# The Lanczos run starts from the gradient, which training aligns with the top of the spectrum, plus
# this much of a random direction, so that no eigenvector is missed.
NOISE = 0.3
# Rows kept for the products of Round.
SPARE = 24


@dataclass(frozen=True)
class Plan:
    """How the products are spent."""

    krylov: int = 0  # Lanczos steps, for the Nyström approximation
    candidates: int = 0  # starts that the approximation proposes
    model_steps: int = 0  # ascent steps on the approximation, which cost no product
    race: int = 2  # steps of every start before the worse half is dropped
    climb: int = 2  # steps of the last
    rtol: float = 1e-4
    patience: int = iterate.PATIENCE  # successive steps below rtol at which an ascent ends
    rounds: bool = False  # whether Round follows, which needs the products

    def spent(self, known: int) -> int:
        """The products spent at most, with so many starts given."""
        members = known + self.candidates
        total = self.krylov + members + self.climb
        while members > 1:
            total += self.race * members
            members = (members + 1) // 2
        return total


class Outcome(NamedTuple):
    """What a program reached."""

    best: Iterates  # of one member
    values: Array  # (K,): what the starts had reached when the first of them was dropped
    history: Array  # the best value, iteration by iteration; NaN where none was made
    products: Products | None  # on the flat view, if there is one
    num_hvps: Array  # 0-d integer


@dataclass(frozen=True)
class MultiStart(NormProgram):
    """The search from given starts and, with ``plan.krylov``, from the approximation's."""

    plan: Plan

    def __call__(
        self,
        oracle: Oracle,
        known: Blocks | None,
        gradient: Blocks,
        noise: Blocks | None = None,
        mixtures: Array | None = None,
        max_climb: Array | None = None,
    ) -> Outcome:
        """Run the plan.

        ``known``: a stack of starts inside the unit ball, or None; ``noise``: a random direction
        for the Lanczos run; ``mixtures``: see :func:`~geodiag.solvers.nystrom.propose`.
        """
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
                steps=plan.model_steps, count=plan.candidates,
            )  # fmt: skip
            known = proposed if known is None else join(known, proposed)
        assert known is not None
        iterates = iterate.begin(known, oracle.hvps(known))
        if products is not None:
            value = iterates.value
            xp = array_namespace(value)
            iterates = iterates._replace(value=xp.where(finite, value, value + float("nan")))
            if plan.rounds:
                products = add(
                    spare(products, SPARE), iterates.direction, iterates.image, plan.krylov
                )
            else:
                products = None
        run, values, history, spent = _race(oracle, norm, iterates, plan, max_climb)
        spent = spent + plan.krylov
        return Outcome(_full(run, view), values, history, products, spent)


@dataclass(frozen=True)
class Round(NormProgram):
    """Random starts and candidates of the Nyström approximation, against the best so far."""

    plan: Plan

    def __call__(
        self,
        oracle: Oracle,
        best: Iterates,
        products: Products,
        gradient: Blocks,
        randoms: Blocks,
        mixtures: Array,
    ) -> Outcome:
        oracle, norm, view = ravel.view(oracle, self.norm)
        plan = self.plan
        if view:
            gradient, randoms = view.flat(gradient), view.flat_stack(randoms)
            best = iterate.mapped(best, view.flat_stack)
        proposed = propose(
            oracle, norm, fit(products), mixtures, gradient,
            steps=plan.model_steps, count=plan.candidates, known=best.direction,
        )  # fmt: skip
        known = join(norm.lmos(randoms), proposed)
        iterates = iterate.begin(known, oracle.hvps(known))
        raced = _ascend(oracle, norm, plan, iterates, plan.race)
        for each in (iterates, raced.iterates):
            products = add(products, each.direction, each.image, plan.krylov)
        leaders = iterate.together(best, iterate.best(raced.iterates))
        climbed = _ascend(oracle, norm, plan, iterate.best(leaders), plan.climb)
        members = iterates.value.shape[0]
        spent = members * (1 + raced.iterations) + climbed.iterations
        return Outcome(
            _full(climbed.iterates, view),
            raced.iterates.value,
            climbed.history,
            products,
            spent,
        )


def _sound(products: Products) -> tuple[Products, Array]:
    """The products, zero if one of them is not finite, and whether all are finite."""
    images, finite = finite_or_zero(products.images)
    xp = array_namespace(products.inner)
    inner = xp.where(finite, products.inner, xp.zeros_like(products.inner))
    return Products(images, inner), finite


def _race(
    oracle: Oracle, norm: Norm, iterates: Iterates, plan: Plan, max_climb: Array | None
) -> tuple[Iterates, Array, Array, Array]:
    """Successive halving, then the climb of the last; the products spent are counted."""
    xp = array_namespace(iterates.value)
    members = iterates.value.shape[0]
    spent = xp.full((), members, dtype=xp.int32, device=device(iterates.value))
    histories, values = [], iterates.value
    while members > 1:
        run = _ascend(oracle, norm, plan, iterates, plan.race)
        spent = spent + members * run.iterations
        histories.append(run.history)
        if not histories[1:]:
            values = run.iterates.value
        members = (members + 1) // 2
        iterates = iterate.best(run.iterates, members)
    run = _ascend(oracle, norm, plan, iterates, plan.climb, max_climb)
    history = xp.concat([*histories, run.history])
    return run.iterates, values, history, spent + run.iterations


def _ascend(
    oracle: Oracle,
    norm: Norm,
    plan: Plan,
    iterates: Iterates,
    limit: int,
    max_steps: Array | None = None,
) -> iterate.Run:
    def step(p: Iterates) -> Iterates:
        return segment(norm, oracle.hvps, p)

    return iterate.run(oracle, step, iterates, limit, plan.rtol, plan.patience, max_steps)


def _full(iterates: Iterates, view: ravel.Flat | None) -> Iterates:
    return iterate.mapped(iterates, view.full) if view else iterates
