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

from geodiag.blocks import Blocks, epsilon, scale
from geodiag.blocks import size as size_of
from geodiag.core.batched import Matrix, gram, join, mix, one
from geodiag.envelopes import Form
from geodiag.errors import NonFiniteError

Products = Callable[[Blocks], Blocks]  # stacked directions d ↦ H d
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
    products: Products,
    form: Form,
    noise: Blocks,
    delta: float,
    limit: int,
    rtol: float,
    enough: float = 0.0,
    spoilt: float = math.inf,
) -> TopBound:
    """At most ``limit`` products, until the bound is below ``enough`` or within ``rtol``.

    Or until the eigenvalue is known to be above ``spoilt``, in the first half of the products.

    ``noise``: standard normal blocks, independent of P.

    Raises:
        NonFiniteError: a product is NaN or infinite.
    """
    if form.root is not None:
        first, component = form.root(one(noise)), delta * math.sqrt(math.pi / 2)
    else:
        # The component of z along the eigenvector y, ⟨z, Py⟩, has variance ‖Py‖² ≥ λ_min(P).
        plain = Form(1.0, lambda x: x, lambda x: x, lambda x: x)
        inverse = bound_top(form.solve, plain, noise, delta / 2, limit + 50, rtol)
        first = one(noise)
        component = delta / 2 * math.sqrt(math.pi / 2 / inverse.upper)
    length = math.sqrt(_number(gram(first, form.apply(first))))
    basis = scale(first, 1 / length)
    log_room = -math.log(component / length)  # −log s + Σ log β
    eps, number = epsilon(noise), size_of(noise)
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        j = len(diagonal) + 1
        last = _row(basis, j - 1)
        image = products(last)
        w = form.solve(image)
        diagonal.append(_number(gram(last, image)))
        for _ in range(2):  # twice is enough
            w = _orthogonal(form, w, basis)
        metric = form.apply(w)
        beta = math.sqrt(max(_number(gram(w, metric)), 0.0))
        T = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        values, vectors = np.linalg.eigh(T)
        size = max(float(np.abs(values).max()), beta)
        rounding = ROUNDING * eps * size
        upper = float(values[-1]) + j * rounding
        beside.append(beta)
        if beta > 0 and j < number:  # else the basis spans all that there is
            log_room += math.log(beta)
            upper = _root_above(values, log_room) + j * rounding
        good = max(enough, float(values[-1]) * (1 + rtol))
        if 2 * j <= limit and values[-1] > spoilt:
            break
        if j >= min(limit, number) or beta == 0 or upper <= good:
            break
        w = scale(w, 1 / beta)
        if beta <= rounding:  # mostly rounding, which need not be orthogonal to the basis
            w = _orthogonal(form, w, basis)
            w = scale(w, 1 / math.sqrt(_number(gram(w, form.apply(w)))))
        basis = join(basis, w)
    ritz = mix(vectors.T, basis)
    # H q_i = P (A q_i), and A's image of the basis leaves it along w alone.
    rest = mix(vectors[-1:, :].T, metric)
    applied = form.apply(mix(values[:, None] * vectors.T, basis))
    images = {name: applied[name] + rest[name] for name in applied}
    return TopBound(upper, values, ritz, images)


def _orthogonal(form: Form, w: Blocks, basis: Blocks) -> Blocks:
    """``w``, a stack of one, less its P-orthogonal projection on the basis."""
    c = gram(basis, form.apply(w))
    return mix(np.concatenate([np.ones((1, 1)), -c.T], axis=1), join(w, basis))


def _row(x: Blocks, i: int) -> Blocks:
    return {name: rows[i : i + 1, ...] for name, rows in x.items()}


def _number(one: Matrix) -> float:
    value = float(one[0, 0])
    if not math.isfinite(value):
        raise NonFiniteError(
            "a Hessian-vector product is not finite",
            got="NaN or infinity",
            do="check the parameters and the data; the training may have diverged",
        )
    return value


def _root_above(values: Matrix, log_room: float) -> float:
    """The λ > max θ_i with Σ log(λ − θ_i) = log_room, from above."""
    top = float(values[-1])
    gaps = top - values
    # Every factor is at least λ − θ₁, and with one of them at exp(room/j) the rest only add.
    high = log_room / len(values)
    low = high - 1.0
    while _excess(low, gaps) > log_room:
        low = 2 * low - high
    for _ in range(60):
        middle = (low + high) / 2
        if _excess(middle, gaps) > log_room:
            high = middle
        else:
            low = middle
    return top + math.exp(high)


def _excess(log_step: float, gaps: Matrix) -> float:
    return float(np.sum(np.log(math.exp(log_step) + gaps)))
