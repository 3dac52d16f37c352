"""An upper bound on the top eigenvalue of P^{-1/2} H P^{-1/2} by Lanczos from a Gaussian start.

After j steps with Ritz values θ_i and off-diagonals β_i, the Lanczos polynomial p(λ) = Π(λ − θ_i)
has ‖p(A)q₁‖ = β₁…β_j. If the top eigenvector has a component of at least s in q₁, then
Π(λ_max − θ_i) ≤ β₁…β_j/s, and the root of that equation above θ₁ bounds λ_max (van Dorsselaer,
Hochstenbach and van der Vorst, SIAM J. Matrix Anal. Appl. 22, 2000). The component of a Gaussian
vector is a Gaussian number, below x in size with probability at most x·√(2/π): that is δ. The
bound holds whatever the spectrum; a spread one makes it looser, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from geodiag.blocks import Blocks, add, epsilon, size
from geodiag.core.stacks import Matrix, mix, one, only
from geodiag.envelopes import Form
from geodiag.norms.quadratic import FromMaps
from geodiag.solvers.lanczos.host import Krylov, require_finite
from geodiag.solvers.lanczos.recurrence import single_step

Hvps = Callable[[Blocks], Blocks]  # stacked directions d ↦ H d
Known: TypeAlias = tuple[Blocks, Blocks]  # stacked directions, and H times these

# What rounding may add to an eigenvalue, in units of the machine epsilon times ‖A‖ per step.
ROUNDING = 10.0


@dataclass(frozen=True)
class TopBound:
    """λ_max ≤ ``upper``, but for the stated probability; and what was seen on the way."""

    upper: float
    values: Matrix  # Ritz values, ascending
    ritz: Blocks  # stacked P-orthonormal Ritz vectors, in the order of the values
    images: Blocks  # H times these


def bound_top(
    products: Hvps,
    form: Form,
    noise: Blocks,
    delta: float,
    limit: int,
    rtol: float,
    target: float = 0.0,
    stop_above: float = math.inf,
) -> TopBound:
    """At most ``limit`` products, until the bound is below ``target`` or within ``rtol``.

    Or until the eigenvalue is known to be above ``stop_above``, in the first half of the products.

    ``noise``: standard normal blocks, independent of P.

    Raises:
        NonFiniteError: a product is NaN or infinite.
    """
    if form.root is not None:
        first, component = only(form.root(one(noise))), delta * math.sqrt(math.pi / 2)
    else:
        # The component of z along the eigenvector y, ⟨z, Py⟩, has variance ‖Py‖² ≥ λ_min(P).
        plain = Form(1.0, lambda x: x, lambda x: x, lambda x: x)
        inverse = bound_top(form.solve, plain, noise, delta / 2, limit + 50, rtol)
        first = noise
        component = delta / 2 * math.sqrt(math.pi / 2 / inverse.upper)
    hvp, norm = _single(products), FromMaps(_single(form.apply), _single(form.solve), "P")
    length = float(norm.value(first))
    require_finite(np.asarray(length))
    log_volume = -math.log(component / length)  # −log s + Σ log β
    eps, number = epsilon(noise), size(noise)
    krylov = Krylov(lambda s, _: single_step(hvp, norm, s), norm, number, number, joined=True)
    krylov.begin(first, None, 0.0)
    while True:
        krylov.grow()
        j, values, beta = len(krylov), krylov.pairs.values, krylov.beta
        rounding = ROUNDING * eps * max(float(krylov.pairs.size), beta)
        upper = krylov.theta + j * rounding
        if beta > 0 and j < number:  # else the basis spans all that there is
            log_volume += math.log(beta)
            upper = _root_above(values, log_volume) + j * rounding
        good = max(target, krylov.theta * (1 + rtol))
        if 2 * j <= limit and krylov.theta > stop_above:
            break
        if j >= min(limit, number) or beta == 0 or upper <= good:
            break
    vectors = krylov.pairs.vectors
    ritz = krylov.combinations(vectors.T)
    # P⁻¹H leads the basis to its own combinations by T, and out of it along the next vector alone.
    images = add(
        form.apply(krylov.combinations(values[:, None] * vectors.T)),
        mix(beta * vectors[-1:, :].T, form.apply(one(krylov.state.next))),
    )
    return TopBound(upper, values, ritz, images)


def _single(f: Callable[[Blocks], Blocks]) -> Callable[[Blocks], Blocks]:
    """A map of stacks as one of single directions."""
    return lambda d: only(f(one(d)))


def _root_above(values: Matrix, log_volume: float) -> float:
    """The λ > max θ_i with Σ log(λ − θ_i) = log_volume, from above."""
    top = float(values[-1])
    gaps = top - values
    # Every factor is at least λ − θ₁, and with one of them at exp(room/j) the rest only add.
    high = log_volume / len(values)
    low = high - 1.0
    while _excess(low, gaps) > log_volume:
        low = 2 * low - high
    for _ in range(60):
        middle = (low + high) / 2
        if _excess(middle, gaps) > log_volume:
            high = middle
        else:
            low = middle
    return top + math.exp(high)


def _excess(log_step: float, gaps: Matrix) -> float:
    return float(np.sum(np.log(math.exp(log_step) + gaps)))
