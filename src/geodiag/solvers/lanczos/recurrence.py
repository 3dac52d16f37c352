"""The Lanczos recurrence in programs: its beginning, some of its steps, a combination of its rows.

On the flat view, if there is one (see :mod:`geodiag.solvers.ravel`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from geodiag.blocks import Array, Blocks, add, axpy, dot, scale, subtract
from geodiag.core.batched import combine, cross, one, only
from geodiag.norms.base import QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.solvers import ravel
from geodiag.solvers.line_search import positive
from geodiag.solvers.program import NormProgram, spent


class Beginning(NamedTuple):
    """Where a recurrence starts."""

    first: Blocks
    before: Blocks  # zero
    beta: Array  # zero
    num_hvps: Array


class Leap(NamedTuple):
    """Some steps of the recurrence."""

    basis: Blocks  # (steps, …)
    alphas: Array  # (steps,): ⟨q, H q⟩
    betas: Array  # (steps,): the length of what came next
    last: Blocks  # of the basis
    image: Blocks  # H times that
    beta: Array  # the last of the betas
    following: Blocks  # not yet of the basis; orthogonal to these steps
    slip: Array  # (steps,): what it was not orthogonal by
    num_hvps: Array


class Direction(NamedTuple):
    """A combination of the basis, as blocks of the parameters."""

    direction: Blocks
    num_hvps: Array


@dataclass(frozen=True)
class Begin(NormProgram):
    """Unit vectors to start from, on the flat view if there is one."""

    norm: QuadraticNorm
    noise: float

    def __call__(self, oracle: Oracle, start: Blocks | None, draw: Blocks | None) -> Beginning:
        """``start``: blocks. ``draw``: a random direction, on the flat view."""
        oracle, norm, view = ravel.quadratic(oracle, self.norm)
        first = None if draw is None else unit(norm, draw)
        if start is not None:
            start = unit(norm, view.flat(start) if view else start)
            first = start if first is None else unit(norm, axpy(self.noise, first, start))
        assert first is not None
        before = scale(first, 0)
        return Beginning(first, before, dot(before, before), spent(first, 0))


@dataclass(frozen=True)
class Recurrence(NormProgram):
    """``steps`` of the three-term recurrence, on the flat view if there is one."""

    norm: QuadraticNorm
    steps: int

    def __call__(self, oracle: Oracle, first: Blocks, before: Blocks, beta: Array) -> Leap:
        oracle, norm, _ = ravel.quadratic(oracle, self.norm)

        def step(state: tuple[Blocks, Blocks, Array, Blocks]) -> Any:
            q, previous, coupling, _ = state
            image, alpha, w = three_terms(oracle, norm, q, previous, coupling)
            length = norm.value(w)
            row = {"alpha": alpha, "beta": length}
            return (scale(w, 1 / positive(length)), q, length, image), (q, row)

        state, (basis, rows) = oracle.scan(step, (first, before, beta, before), self.steps)
        w, last, beta, image = state
        slip = cross(one(norm.metric(w)), basis)
        w = unit(norm, subtract(w, only(combine(slip, basis))))
        return Leap(
            basis, rows["alpha"], rows["beta"], last, image, beta, w, slip[0, ...],
            spent(w, self.steps),
        )  # fmt: skip


@dataclass(frozen=True)
class Combination:
    """A combination of rows, kept in several stacks."""

    key: ClassVar[Hashable | None] = "a combination of rows"

    def __call__(
        self, oracle: Oracle, stacks: tuple[Blocks, ...], weights: tuple[Array, ...]
    ) -> Direction:
        """``weights``: (1, k) for each stack of k."""
        # One after the other: all parts together would be as many vectors as there are stacks.
        total = only(combine(weights[0], stacks[0]))
        for w, rows in zip(weights[1:], stacks[1:], strict=True):
            total = add(total, only(combine(w, rows)))
        view = ravel.of(oracle)
        return Direction(view.full(total) if view else total, spent(total, 0))


def three_terms(
    oracle: Oracle, norm: QuadraticNorm, q: Blocks, before: Blocks, beta: Array
) -> tuple[Blocks, Array, Blocks]:
    """Hq, ⟨q, Hq⟩, and P⁻¹Hq less its components along q and the one before."""
    image = oracle.hvp(q)
    alpha = dot(q, image)
    w = subtract(norm.inverse_metric(image), axpy(alpha, q, scale(before, beta)))
    return image, alpha, axpy(-dot(norm.metric(q), w), q, w)  # once more against the last: rounding


def unit(norm: QuadraticNorm, d: Blocks) -> Blocks:
    """d/‖d‖, and zero for zero."""
    return scale(d, 1 / positive(norm.value(d)))
