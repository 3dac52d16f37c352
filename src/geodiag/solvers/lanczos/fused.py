"""A whole Lanczos measurement as one program, for adapters that compile.

It decides for itself when to stop, so the host asks once and waits once. Where nothing compiles it
declines: a loop in Python looks at small matrices faster on the host, as
:mod:`geodiag.solvers.lanczos.host` does, which also goes on from where this one ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

from geodiag.blocks import (
    Array,
    Blocks,
    array_namespace,
    device,
    epsilon,
    scale,
    subtract,
)
from geodiag.norms.base import QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.solvers import ravel
from geodiag.solvers.lanczos.recurrence import Begin, Beginning, three_terms, unit
from geodiag.solvers.line_search import positive
from geodiag.solvers.program import NormProgram, spent
from geodiag.solvers.rayleigh import SteepestDirection, evaluate_witness

INVARIANT = 10.0  # epsilons: a coupling that is rounding
FLOOR = 50.0  # epsilons: a residual that is
TILTED = 10.0
LOST = 0.01
S = TypeVar("S")


@runtime_checkable
class Growing(Protocol):
    """An oracle that can keep the rows of a loop of unknown length: one that compiles."""

    def grow(
        self,
        go_on: Callable[[S], Array],
        step: Callable[[S, Blocks], tuple[S, Blocks]],
        state: S,
        rows: Blocks,
    ) -> tuple[S, Blocks]:
        """``state, row = step(state, rows)`` while ``go_on(state)``, once per row at most.

        ``rows``: a stack of zeros, which the steps' own replace one by one.
        """


class Declined(NamedTuple):
    """The answer where nothing compiles."""

    num_hvps: int = 0


class Numbers(NamedTuple):
    """What the host decides by: 0-d arrays, on the host floats."""

    loss: Any  # L(w)
    gradient: Any  # whether it is finite
    length: Any  # of lmo(∇L)
    sound: Any
    count: Any  # steps
    done: Any  # whether the residual met the tolerance
    invariant: Any  # whether the basis spans all that the start can reach
    lost: Any  # whether orthogonality is: a component found where none should be
    value: Any
    residual: Any  # absolute
    dual_norm: Any
    finite: Any  # whether the product at the witness is
    certified: Any  # whether there was one


class Searched(NamedTuple):
    """A measurement, and all that it takes to go on from it."""

    direction: Blocks  # of unit norm, as blocks of the parameters
    witness: Blocks  # the same on the flat view, as are the others
    numbers: Array  # Numbers; then alphas, betas and Ritz values, ``limit`` each
    rows: Blocks  # (limit, n): the basis; zero beyond ``count``
    last: Blocks  # of the basis
    image: Blocks  # H times that
    beta: Array
    following: Blocks
    num_hvps: Array


class Look(NamedTuple):
    """The projected problem as it was looked at last."""

    theta: Array
    weights: Array  # (limit,): the top eigenvector
    tilted: Array  # whether rounding turns what follows (see Krylov)
    done: Array


class Steps(NamedTuple):
    """The recurrence after ``count`` steps."""

    following: Blocks
    last: Blocks
    image: Blocks
    beta: Array
    count: Array
    alphas: Array  # (limit,), as the next two
    betas: Array
    thetas: Array
    slip: Array
    invariant: Array
    look: Look


@dataclass(frozen=True)
class Whole(NormProgram):
    """Gradient, start, recurrence with its stopping rule, Ritz vector and fresh product in one.

    ``limit``: steps at most; ``least``: steps before the first look at the residual; ``noise``: as
    in :class:`~geodiag.solvers.lanczos.recurrence.Begin`. For problems that fit the flat view.
    """

    norm: QuadraticNorm
    limit: int
    least: int
    noise: float
    # It asks all that is asked of the oracle: nothing that it computes need be kept for others.
    alone: ClassVar[bool] = True

    def __call__(
        self, oracle: Oracle, start: Blocks | None, draw: Any, rtol: float, room: int
    ) -> Searched | Declined:
        """Search.

        Args:
            oracle: the point.
            start: the first direction; None: the gradient's LMO.
            draw: a random direction on the flat view, or None.
            rtol: of the residual, above rounding.
            room: the largest number of steps.

        Returns:
            Searched, or Declined where the oracle has no compiled loop for it.
        """
        if not isinstance(oracle, Growing):
            return Declined()
        seen, norm, view = ravel.quadratic(oracle, self.norm)
        assert view is not None
        gradient = oracle.gradient()
        opening = SteepestDirection(self.norm)(oracle, gradient)
        drawn = None if draw is None else {ravel.NAME: oracle.space.asarray(draw)}
        start = opening.steepest if start is None else start
        begun = Begin(self.norm, self.noise)(oracle, start, drawn)
        search = _Search(seen, norm, self.limit, self.least, rtol, room)
        steps, rows = oracle.grow(search.go_on, search.step, *search.begin(begun))

        following = unit(norm, steps.following)
        slips = _along(norm, following, rows)
        xp = array_namespace(slips)
        slip = xp.maximum(xp.max(xp.abs(slips)), steps.slip)
        # After one step its product is the witness's; where the host goes on, there is no witness.
        single = steps.count == 1
        lost = (slip > LOST) & ~steps.invariant
        certified = (steps.look.done & ~lost) | (steps.count >= room)
        following, _ = oracle.loop(
            lambda s: s[1],
            lambda s: (unit(norm, subtract(s[0], _mixed(slips, rows))), ~s[1]),
            (following, ~certified),
        )
        witness = unit(norm, _mixed(steps.look.weights, rows))
        direction = view.full(witness)
        image, _ = oracle.loop(
            lambda s: certified & ~single & ~s[1],
            lambda s: (seen.hvp(witness), ~s[1]),
            (scale(steps.image, steps.look.weights[0]), ~certified),
        )
        asks = steps.count + spent(witness, 1) * (certified & ~single)
        said = evaluate_witness(
            self.norm, direction, view.full(image), gradient, opening.steepest, asks
        )
        numbers = Numbers(
            oracle.loss(), opening.finite, opening.length, opening.sound,
            steps.count, steps.look.done, steps.invariant, lost,
            said.value, said.residual, said.dual_norm, said.finite, certified,
        )  # fmt: skip
        packed = [xp.stack([xp.astype(x, slips.dtype) for x in numbers])]
        packed += [steps.alphas, steps.betas, steps.thetas]
        return Searched(
            direction, witness, xp.concat(packed), rows, steps.last, steps.image, steps.beta,
            following, asks,
        )  # fmt: skip


@dataclass(frozen=True)
class _Search:
    """The steps of one :class:`Whole`, on the flat view."""

    oracle: Oracle
    norm: QuadraticNorm
    limit: int
    least: int
    rtol: float
    room: int

    def begin(self, begun: Beginning) -> tuple[Steps, Blocks]:
        first, before, zero = begun.first, begun.before, begun.beta
        none = spent(first, 0)
        xp = array_namespace(zero)
        nothing = xp.zeros(self.limit, dtype=zero.dtype, device=device(zero))
        no = none > 0
        look = Look(zero, nothing, no, no)
        steps = Steps(first, before, before, zero, none, nothing, nothing, nothing, zero, no, look)
        return steps, {ravel.NAME: nothing[:, None] * first[ravel.NAME]}

    def go_on(self, s: Steps) -> Array:
        xp = array_namespace(s.beta)
        return (s.count < self.room) & ~s.look.done & ~s.invariant & xp.isfinite(s.beta)

    def step(self, s: Steps, rows: Blocks) -> tuple[Steps, Blocks]:
        q = s.following
        image, alpha, w = three_terms(self.oracle, self.norm, q, s.last, s.beta)
        w, slip, _ = self.oracle.loop(
            lambda c: c[2],
            lambda c: (*self._cleaned(c[0], rows), ~c[2]),
            (w, s.slip, s.look.tilted),
        )
        beta = self.norm.value(w)
        xp = array_namespace(alpha)
        here = _places(s.alphas) == s.count
        alphas, betas = xp.where(here, alpha, s.alphas), xp.where(here, beta, s.betas)
        top = xp.maximum(xp.max(xp.abs(alphas)), xp.max(betas))
        invariant = beta <= INVARIANT * epsilon(w) * top
        sure = invariant | (s.count + 1 >= self.least)  # that the top one is seen (see Lanczos)
        due = sure | (s.count + 1 >= self.room)
        look, _ = self.oracle.loop(
            lambda c: c[1],
            lambda c: (self._look(alphas, betas, here, invariant, sure), ~c[1]),
            (s.look, due),
        )
        thetas = xp.where(here & due, look.theta, s.thetas)
        following = scale(w, 1 / positive(beta))
        # q, by way of beta: a row that could be written before the others are read would make XLA
        # copy all of them in every step, which takes as long as a product.
        row = {ravel.NAME: xp.where(xp.isfinite(beta), q[ravel.NAME], 0 * q[ravel.NAME])}
        return Steps(
            following, q, image, beta, s.count + 1, alphas, betas, thetas,
            xp.maximum(slip, s.slip), invariant, look,
        ), row  # fmt: skip

    def _cleaned(self, w: Blocks, rows: Blocks) -> tuple[Blocks, Array]:
        """w less its components along all rows, and the largest of these, relative to it."""
        products = _along(self.norm, w, rows)
        xp = array_namespace(products)
        clean = subtract(w, _mixed(products, rows))
        return clean, xp.max(xp.abs(products)) / positive(self.norm.value(w))

    def _look(
        self, alphas: Array, betas: Array, here: Array, invariant: Array, sure: Array
    ) -> Look:
        """The top Ritz pair of the steps so far, the last of them ``here``."""
        xp = array_namespace(alphas)
        places, last = _places(alphas), xp.sum(xp.where(here, _places(alphas), 0 * _places(alphas)))
        used, nothing = places <= last, xp.zeros_like(alphas)
        reach = xp.max(xp.abs(alphas)) + 2 * xp.max(betas)
        # What is not used lies below all that is.
        low = -2 * xp.where(reach > 0, reach, xp.ones_like(reach))
        off = xp.where(places < last, betas, nothing)[:, None] * xp.eye(
            self.limit, k=1, dtype=alphas.dtype, device=device(alphas)
        )
        diagonal = xp.where(used, alphas, low)[:, None] * xp.eye(
            self.limit, dtype=alphas.dtype, device=device(alphas)
        )
        values, vectors = xp.linalg.eigh(diagonal + off + xp.matrix_transpose(off))
        beta = xp.sum(xp.where(here, betas, nothing))
        residuals = beta * xp.abs(xp.sum(xp.where(here[:, None], vectors, 0 * vectors), axis=0))
        ours = values > 0.75 * low
        theta = values[-1]
        size = xp.max(xp.where(ours, xp.abs(values), nothing))
        eps = epsilon({ravel.NAME: alphas})
        nearest = xp.min(xp.where(ours, residuals, size + residuals))
        tilted = nearest < TILTED * math.sqrt(eps) * size
        # A value near zero beside large |eigenvalues| resolves to rounding of these, no better.
        enough = xp.maximum(self.rtol * xp.abs(theta), FLOOR * eps * size / 5)
        return Look(theta, vectors[:, -1], tilted, invariant | (sure & (residuals[-1] <= enough)))


def _places(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.arange(x.shape[0], dtype=xp.int32, device=device(x))


def _along(norm: QuadraticNorm, w: Blocks, rows: Blocks) -> Array:
    """The components of w along the rows, (limit,)."""
    return rows[ravel.NAME] @ norm.metric(w)[ravel.NAME]


def _mixed(weights: Array, rows: Blocks) -> Blocks:
    """A combination of the rows."""
    return {ravel.NAME: weights @ rows[ravel.NAME]}
