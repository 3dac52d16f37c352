"""The Lanczos recurrence in one compiled program, which decides for itself when to stop.

The host asks once and waits once. Where nothing compiles, :mod:`geodiag.solvers.lanczos.host` is
quicker; it also continues where this one ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from geodiag.blocks import (
    Array,
    Blocks,
    array_namespace,
    device,
    epsilon,
    map_blocks,
    positive,
    scale,
)
from geodiag.core.stacks import combine, one, only
from geodiag.norms.base import QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.solvers import ravel
from geodiag.solvers.lanczos.recurrence import (
    LOST,
    State,
    begin,
    is_rounding,
    lanczos_step,
    orthogonalised,
    ritz_pairs,
    tolerated,
    tridiagonal,
    unit,
)
from geodiag.solvers.program import NormProgram, spent
from geodiag.solvers.rayleigh import SteepestDirection, evaluate_witness

S = TypeVar("S")


class Summary(NamedTuple):
    """What the host decides by: 0-d arrays, on the host floats."""

    loss: Any
    gradient: Any  # whether it is finite
    length: Any  # of lmo(∇L)
    sound: Any  # whether lmo(∇L) is finite
    count: Any  # steps
    done: Any  # whether the residual met the tolerance
    invariant: Any  # whether the basis spans all that the start can reach
    overlap: Any  # the largest component found where there should be none
    value: Any
    residual: Any  # absolute
    dual_norm: Any
    finite: Any  # whether the product at the witness is
    certified: Any  # whether there was one


class Answer(NamedTuple):
    """A measurement, and all that it takes to continue it."""

    direction: Blocks  # of unit norm, as blocks of the parameters
    witness: Blocks  # the same on the flat view, as are the others
    numbers: Array  # Summary; then alphas, betas and top Ritz values, ``limit`` each
    rows: Blocks  # (limit, n): the basis; zero beyond ``count``
    image: Blocks  # H times the last row
    state: State
    num_hvps: Array


class TopPair(NamedTuple):
    """The top Ritz pair, as it was computed last."""

    theta: Array
    weights: Array  # (limit,)
    turned: Array  # as in RitzPairs
    done: Array


class Progress(NamedTuple):
    """The recurrence after ``count`` steps."""

    state: State
    image: Blocks
    count: Array
    alphas: Array  # (limit,), as the next two
    betas: Array
    thetas: Array
    overlap: Array
    invariant: Array
    top: TopPair


@dataclass(frozen=True)
class FusedLanczos(NormProgram):
    """Gradient, start, recurrence with its stopping rule, Ritz vector and fresh product in one.

    ``limit``: rows of the basis; ``least``: steps before the residual may end it; ``noise``: times
    the random direction in the start. For problems that fit the flat view.
    """

    norm: QuadraticNorm
    limit: int
    least: int
    noise: float
    # It asks all that is asked of the oracle: nothing that it computes need be kept for others.
    alone: ClassVar[bool] = True

    def __call__(
        self,
        oracle: Oracle,
        start: Blocks | None,
        draw: Any,
        rtol: float,
        floor: float,
        settled: int,
        budget: int,
    ) -> Answer | None:
        """Measure; None where loops are not compiled.

        ``start``: None for the gradient's LMO; ``draw``: a random direction on the flat view, or
        None. The others are those of :class:`Search`.
        """
        if oracle.grow is None:
            return None
        seen, norm, view = ravel.quadratic(oracle, self.norm)
        assert view is not None
        gradient = oracle.gradient()
        opening = SteepestDirection(self.norm)(oracle, gradient)
        drawn = None if draw is None else {ravel.NAME: oracle.space.asarray(draw)}
        first = view.flat(opening.steepest if start is None else start)
        search = Search(seen, norm, self.limit, self.least, rtol, floor, settled, budget)
        s, rows = search.run(begin(norm, first, drawn, self.noise))

        following = unit(norm, s.state.next)
        clean, products = orthogonalised(norm, following, rows)
        xp = array_namespace(products)
        overlap = xp.where(s.invariant, 0 * s.overlap, xp.maximum(xp.max(abs(products)), s.overlap))
        # Where the host continues, there is no witness.
        certified = (s.top.done & (overlap <= LOST)) | (s.count >= budget)
        following = _if(oracle, ~certified, lambda _: unit(norm, clean), following)
        witness = search.witness(s, rows)
        direction = view.full(witness)
        # After one step its product is the witness's.
        single = s.count == 1
        image = _if(
            oracle, certified & ~single,
            lambda _: seen.hvp(witness), scale(s.image, s.top.weights[0]),
        )  # fmt: skip
        asks = s.count + spent(witness, 1) * (certified & ~single)
        end = evaluate_witness(
            self.norm, direction, view.full(image), gradient, opening.steepest, asks
        )
        summary = Summary(
            oracle.loss(), opening.finite, opening.length, opening.sound,
            s.count, s.top.done, s.invariant, overlap,
            end.value, end.residual, end.dual_norm, end.finite, certified,
        )  # fmt: skip
        packed = xp.stack([xp.astype(x, products.dtype) for x in summary])
        packed = xp.concat([packed, s.alphas, s.betas, s.thetas])
        state = s.state._replace(next=following)
        return Answer(direction, witness, packed, rows, s.image, state, asks)


@dataclass(frozen=True)
class Search:
    """The recurrence until the top Ritz pair is good enough.

    ``rtol`` and ``floor``: relative residuals, of the value and of the largest eigenvalue (see
    :func:`~geodiag.solvers.lanczos.recurrence.tolerated`). ``settled``: steps from which a coupling
    that is rounding ends the search; ``budget``: steps at most.
    """

    oracle: Oracle
    norm: QuadraticNorm
    limit: int
    least: int
    rtol: Any
    floor: Any
    settled: Any
    budget: Any

    def run(self, state: State) -> tuple[Progress, Blocks]:
        """The end of the search, and the basis, zero beyond its rows."""
        assert self.oracle.grow is not None
        zero, count = state.beta, spent(state.next, 0)
        xp, no = array_namespace(zero), count > 0
        nothing = xp.zeros(self.limit, dtype=zero.dtype, device=device(zero))
        top = TopPair(zero, nothing, no, no)
        s = Progress(state, state.last, count, nothing, nothing, nothing, zero, no, top)
        rows = combine(nothing[:, None], one(state.next))
        found: tuple[Progress, Blocks] = self.oracle.grow(self._goes_on, self._step, s, rows)
        return found

    def witness(self, s: Progress, rows: Blocks) -> Blocks:
        """The top Ritz vector."""
        return unit(self.norm, only(combine(s.top.weights[None, :], rows)))

    def _goes_on(self, s: Progress) -> Array:
        xp = array_namespace(s.alphas)
        return (s.count < self.budget) & ~s.top.done & ~s.invariant & xp.isfinite(s.state.beta)

    def _step(self, s: Progress, rows: Blocks) -> tuple[Progress, Blocks]:
        xp, eps = array_namespace(s.alphas), epsilon(s.state.next)
        q, count = s.state.next, s.count + 1
        state, image, alpha = lanczos_step(self.oracle.hvp, self.norm, s.state, self.norm.value)
        here = _places(s.alphas) == s.count
        alphas = xp.where(here, alpha, s.alphas)
        size = xp.maximum(xp.max(abs(alphas)), xp.maximum(xp.max(s.betas), state.beta))
        rounding = is_rounding(state.beta, size, eps)
        ends = rounding & (count >= self.settled)
        # What is rounding is orthogonal to nothing, also after once.
        times = xp.where(rounding, 3, xp.where(s.top.turned, 1, 0))
        state, found, _ = self.oracle.loop(
            lambda c: c[2] > 0,
            lambda c: (*self._cleaned(c[0], c[1], rows), c[2] - 1),
            (state, s.overlap, xp.where(ends, 0, times)),
        )
        invariant = ends | (state.beta == 0)
        overlap = xp.where(rounding, s.overlap, found)
        betas = xp.where(here, state.beta, s.betas)
        # A small residual certifies an eigenvalue; that none is larger takes a few steps.
        sure = invariant | (count >= self.least)
        due = sure | (count >= self.budget)
        top = _if(
            self.oracle, due,
            lambda _: self._top(alphas, betas, count, invariant, sure), s.top,
        )  # fmt: skip
        thetas = xp.where(here & due, top.theta, s.thetas)
        # q, by way of beta: a row that could be written before the others are read would make XLA
        # copy all of them in every step, which takes as long as a product.
        row = map_blocks(lambda x: xp.where(xp.isfinite(state.beta), x, 0 * x), q)
        after = Progress(state, image, count, alphas, betas, thetas, overlap, invariant, top)
        return after, row

    def _cleaned(self, state: State, overlap: Array, rows: Blocks) -> tuple[State, Array]:
        """The state with its next vector orthogonal to all rows, and the largest overlap so far."""
        w, products = orthogonalised(self.norm, state.next, rows)
        length = self.norm.value(w)
        xp = array_namespace(length)
        next = scale(w, 1 / positive(length))
        found = xp.maximum(overlap, xp.max(abs(products)))
        return State(next, state.last, state.beta * length), found

    def _top(
        self, alphas: Array, betas: Array, count: Array, invariant: Array, sure: Array
    ) -> TopPair:
        """The top Ritz pair of the steps so far."""
        xp, eps, last = array_namespace(alphas), epsilon({"": alphas}), count - 1
        places, nothing = _places(alphas), xp.zeros_like(alphas)
        reach = xp.max(abs(alphas)) + 2 * xp.max(betas)
        low = -2 * positive(reach)  # what is not in use lies below all that is
        diagonal = xp.where(places <= last, alphas, low)
        beside = xp.where(places < last, betas, nothing)
        pairs = ritz_pairs(tridiagonal(diagonal, beside), betas[last], eps, last, 0.75 * low)
        theta = pairs.values[-1]
        enough = pairs.residual <= tolerated(theta, pairs.size, self.rtol, self.floor)
        return TopPair(theta, pairs.vectors[:, -1], pairs.turned, invariant | (sure & enough))


def _if(oracle: Oracle, condition: Array, f: Callable[[S], S], x: S) -> S:
    """``f(x)`` where the condition holds, else ``x``, and then ``f`` is not computed."""
    return oracle.loop(lambda s: s[1], lambda s: (f(s[0]), ~s[1]), (x, condition))[0]


def _places(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.arange(x.shape[0], dtype=xp.int32, device=device(x))
