"""The Lanczos recurrence for P⁻¹H, which is self-adjoint in ⟨x, y⟩_P = ⟨x, Py⟩.

    β₊ q₊ = P⁻¹Hq − αq − βq₋,    α = ⟨q, Hq⟩,    ‖q‖_P = 1

In the basis of these q, P⁻¹H is the tridiagonal matrix T of the α and β. An eigenpair (θ, s) of T
gives a Ritz pair (θ, d = Σ s_i q_i) with ‖P⁻¹Hd − θd‖_P = β₊·|s_last| (Parlett, The Symmetric
Eigenvalue Problem, SIAM 1998, chapter 13). The same functions serve NumPy on the host and arrays in
a compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from geodiag.blocks import (
    Array,
    Blocks,
    array_namespace,
    axpy,
    device,
    dot,
    positive,
    scale,
    subtract,
    where,
)
from geodiag.core.stacks import combine, cross, one, only
from geodiag.norms.base import QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.solvers import ravel
from geodiag.solvers.program import NormProgram, spent
from geodiag.solvers.rayleigh import safe_value

ROUNDING = 10.0  # machine epsilons, relative to T: a coupling β no larger is rounding
# Rounding turns the next vector towards a converged Ritz vector by ε‖T‖/residual (Paige 1980).
# Above √ε/TURNED this is removed; above LOST the basis is no longer orthogonal.
TURNED = 10.0
LOST = 0.01
CANCELLED = 1e-3  # the start and the random direction are opposite: their sum says nothing


class State(NamedTuple):
    """Where a recurrence is."""

    next: Blocks  # of unit norm, not yet in the basis; zero where the space is exhausted
    last: Blocks  # the vector before; zero at first
    beta: Array  # the coupling of the two


class Steps(NamedTuple):
    """Some steps of the recurrence."""

    rows: Blocks  # (steps, …): what they add to the basis
    alphas: Array  # (steps,)
    betas: Array  # (steps,): the coupling of each row to what came next
    image: Blocks  # H times the last row
    state: State
    overlap: Array  # 0-d: the largest component of ``next`` along the rows, which is removed
    num_hvps: Array


class RitzPairs(NamedTuple):
    """The projected problem, solved."""

    values: Array  # ascending
    vectors: Array  # columns
    residual: Array  # ‖P⁻¹Hd − θd‖_P of the top pair
    size: Array  # the largest |value|
    turned: Array  # whether rounding has turned the next vector, which must be orthogonalised


def unit(norm: QuadraticNorm, d: Blocks) -> Blocks:
    """d/‖d‖, and zero for zero."""
    return scale(d, 1 / positive(norm.value(d)))


def begin(norm: QuadraticNorm, start: Blocks, draw: Blocks | None, noise: float) -> State:
    """From ``start`` and ``noise`` times the random ``draw``, both taken at unit norm."""
    first = unit(norm, start)
    if draw is not None:
        draw = unit(norm, draw)
        first = axpy(noise, draw, first)
        length = norm.value(first)
        first = where(length > CANCELLED, scale(first, 1 / positive(length)), draw)
    last = scale(first, 0)
    return State(first, last, dot(last, last))


def lanczos_step(
    hvp: Callable[[Blocks], Blocks],
    norm: QuadraticNorm,
    state: State,
    length: Callable[[Blocks], Array],
) -> tuple[State, Blocks, Array]:
    """The state after one more step, with Hq and α of the vector q that joins the basis.

    ``length``: the norm, or a way to compute it that does not overflow.
    """
    q, before, beta = state
    image = hvp(q)
    alpha = dot(q, image)
    rest = axpy(-alpha, q, axpy(-beta, before, norm.inverse_metric(image)))
    rest = axpy(-dot(norm.metric(q), rest), q, rest)  # again: the first time leaves rounding
    beta = length(rest)
    return State(scale(rest, 1 / positive(beta)), q, beta), image, alpha


def orthogonalised(norm: QuadraticNorm, w: Blocks, *stacks: Blocks) -> tuple[Blocks, Array]:
    """w less its components along the rows of all stacks, and these components."""
    metric, found = one(norm.metric(w)), []
    for rows in stacks:
        products = cross(metric, rows)
        w = subtract(w, only(combine(products, rows)))
        found.append(products[0, ...])
    return w, array_namespace(*found).concat(found)


def is_rounding(beta: Array, size: Array, eps: float) -> Array:
    """Whether a coupling is rounding beside the largest entry of T.

    The space is then invariant, as far as this precision can tell.
    """
    return beta <= ROUNDING * eps * size


def tolerated(theta: Array, size: Array, rtol: Any, floor: Any) -> Array:
    """The absolute residual that is small enough.

    A value near zero beside large |eigenvalues| resolves to the rounding of these, no better.
    """
    return array_namespace(theta).maximum(rtol * abs(theta), floor * size / 5)


def tridiagonal(diagonal: Array, beside: Array) -> Array:
    """The matrix; the last of ``beside`` leads out of it."""
    xp, k = array_namespace(diagonal), diagonal.shape[0]
    options = {"dtype": diagonal.dtype, "device": device(diagonal)}
    off = beside[:, None] * xp.eye(k, k=1, **options)
    return diagonal[:, None] * xp.eye(k, **options) + off + off.T


def ritz_pairs(
    T: Array, beta: Array, eps: float, last: Any = -1, above: Any = -math.inf
) -> RitzPairs:
    """The eigenpairs of T, of which ``last`` is the row that ``beta`` couples to the next vector.

    Eigenvalues not ``above`` belong to rows that are not in use.
    """
    xp = array_namespace(T)
    values, vectors = xp.linalg.eigh(T)
    residuals, ours = beta * xp.abs(vectors[last, :]), values > above
    size = xp.max(xp.where(ours, xp.abs(values), xp.zeros_like(values)))
    nearest = xp.min(xp.where(ours, residuals, size + residuals))
    turned = nearest < TURNED * math.sqrt(eps) * size
    return RitzPairs(values, vectors, residuals[-1], size, turned)


@dataclass(frozen=True)
class Recurrence(NormProgram):
    """``steps`` of the recurrence, on the flat view if there is one."""

    norm: QuadraticNorm
    steps: int

    def __call__(self, oracle: Oracle, state: State) -> Steps:
        seen, norm, _ = ravel.quadratic(oracle, self.norm)
        if self.steps == 1:
            return single_step(seen.hvp, norm, state)

        def step(before: tuple[State, Blocks]) -> Any:
            state, image, alpha = lanczos_step(seen.hvp, norm, before[0], norm.value)
            return (state, image), (state.last, {"alpha": alpha, "beta": state.beta})

        (state, image), (rows, numbers) = seen.scan(step, (state, state.last), self.steps)
        w, products = orthogonalised(norm, state.next, rows)
        return Steps(
            rows, numbers["alpha"], numbers["beta"], image, state._replace(next=unit(norm, w)),
            array_namespace(products).max(abs(products)), spent(w, self.steps),
        )  # fmt: skip


def single_step(hvp: Callable[[Blocks], Blocks], norm: QuadraticNorm, state: State) -> Steps:
    """One step of the recurrence, safe from overflow."""
    q = state.next
    state, image, alpha = lanczos_step(hvp, norm, state, lambda w: safe_value(norm, w))
    return Steps(one(q), alpha[None], state.beta[None], image, state, 0 * alpha, spent(q, 1))
