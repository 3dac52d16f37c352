"""The truth of a case in float64, by differences of first derivatives, with none of geodiag in it.

Fourth-order central differences along a unit direction with h = 1e-4: truncation h⁴ = 1e-16 and
rounding ε/h = 2e-12, relative to gradients of order one. The small step crosses few kinks (ReLU).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

STEP = 1e-4
# Where a part of the gradient is in float32 whatever the dtype: ε/h = 1e-5 and h⁴ = 1e-8.
SINGLE_STEP = 1e-2
Vector = np.ndarray[Any, Any]
Sizes = dict[str, int]


@dataclass(frozen=True)
class Truth:
    """What a cell is compared with."""

    top: float  # λ_max of the Hessian
    signs: float  # ⟨d, Hd⟩ for d = ±1, of unit ℓ∞ norm
    scale: float  # Σ|d_i (Hd)_i|: what that sum may cancel
    direction: dict[str, Vector]  # the d: flat, for each name


def truth(
    gradient: Callable[[Vector], Vector], point: Vector, sizes: Sizes, h: float = STEP
) -> Truth:
    """From a gradient on flat vectors, in the order of ``sizes``; ``h``: the step."""

    def product(d: Vector) -> Vector:
        length = float(np.linalg.norm(d))
        step = np.ravel(d) * (h / length)
        a, b, c, e = (gradient(point + k * step) for k in (-2, -1, 1, 2))
        return (a - 8 * b + 8 * c - e) * (length / (12 * h))

    n = point.size
    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
    (top,) = eigsh(
        operator, k=1, which="LA", tol=1e-9, v0=np.random.default_rng(0).standard_normal(n),
        return_eigenvectors=False,
    )  # fmt: skip
    d = np.random.default_rng(1).choice([-1.0, 1.0], n)
    ends = np.cumsum(list(sizes.values()))[:-1]
    direction = dict(zip(sizes, np.split(d, ends), strict=True))
    terms = d * product(d)
    return Truth(float(top), float(terms.sum()), float(np.abs(terms).sum()), direction)
