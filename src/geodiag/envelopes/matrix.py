"""The operator norm of one matrix: ⟨D, LD⟩ + ⟨D, DR⟩ ≤ tr L + tr R where ‖D‖_op ≤ 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from geodiag.blocks import Array, Blocks, array_namespace, positive
from geodiag.core.spaces import MatrixView, Space
from geodiag.envelopes.base import Envelope, Form, Map, Weights

# Steps of the fixed point: from a start one iteration old a few do, and none costs a product.
WARM_STEPS = 4
COLD_STEPS = 20


class TwoSided(Envelope):
    """P = L⊗I + I⊗R with L, R ⪰ 0 for one tensor seen as a rows × cols matrix; weights (L, R).

    One-sided forms (L or R alone) are much looser. The best L and R for images G_k solve, with V_k
    the solution of L V_k + V_k R = G_k, L = (L ΣVVᵀ L)^{1/2} and R = (R ΣVᵀV R)^{1/2}.
    """

    def __init__(self, space: Space, view: MatrixView) -> None:
        (self._name,) = space.names
        self._space, self._view = space, view
        self._shape = space.shapes[self._name]
        self._rows, self._cols = view.shape(self._shape)

    def interior(self) -> Weights:
        sizes = (self._rows, self._cols)
        left, right = (self._space.asarray(np.eye(k) / (2 * k)) for k in sizes)
        return left, right

    def bound(self, weights: Weights) -> float:
        return sum(float(array_namespace(w).linalg.trace(w)) for w in weights)

    def fit(self, images: Blocks, start: Weights | None = None) -> Weights:
        g = self._matrices(images)
        if start is None:
            left, right = _root(_outer(g)) / 2, _root(_inner(g)) / 2
        else:
            left, right = start
        for _ in range(COLD_STEPS if start is None else WARM_STEPS):
            v = _divide(_Pair(left, right, 100.0), g, 1.0)
            left, right = _root(left @ _outer(v) @ left), _root(right @ _inner(v) @ right)
        return left, right

    def form(self, weights: Weights) -> Form:
        left, right = weights
        pair = cache(lambda: _Pair(left, right))  # not every form is divided by
        return Form(
            self.bound(weights),
            self._on(lambda x: left @ x + x @ right),
            self._on(lambda g: _divide(pair(), g, 1.0)),
            self._on(lambda z: _divide(pair(), z, 0.5)),
        )

    def _on(self, f: Callable[[Array], Array]) -> Map:
        return lambda x: {self._name: self._tensors(f(self._matrices(x)))}

    def _matrices(self, x: Blocks) -> Array:
        """(k, rows, cols)."""
        xp = array_namespace(x[self._name])
        return xp.stack([self._view.to_matrix(y) for y in _rows_of(x[self._name])])

    def _tensors(self, m: Array) -> Array:
        xp = array_namespace(m)
        return xp.stack([self._view.from_matrix(y, self._shape) for y in _rows_of(m)])


class _Pair:
    """L and R by their eigenvectors, in which P is the diagonal l_i + r_j.

    ``units``: how many machine epsilons of the largest sum the least one is raised to.
    """

    def __init__(self, left: Array, right: Array, units: float = 1.0) -> None:
        xp = array_namespace(left)
        rows, self.left = xp.linalg.eigh(left)
        cols, self.right = xp.linalg.eigh(right)
        d = rows[:, None] + cols[None, :]
        # Sums of two vanishing eigenvalues are rounding, which must not be divided by.
        least = units * xp.finfo(d.dtype).eps * xp.max(xp.abs(d))
        self.sums = xp.where(d > least, d, least + xp.zeros_like(d))


def _divide(pair: _Pair, x: Array, power: float) -> Array:
    """P^{-power} x for stacked matrices."""
    xp = array_namespace(x)
    d = pair.sums if power == 1.0 else xp.sqrt(pair.sums)
    inside = xp.matrix_transpose(pair.left) @ x @ pair.right
    return pair.left @ (inside / positive(d)) @ xp.matrix_transpose(pair.right)


def _root(m: Array) -> Array:
    """The square root of a positive semidefinite matrix."""
    xp = array_namespace(m)
    values, vectors = xp.linalg.eigh((m + xp.matrix_transpose(m)) / 2)
    values = xp.sqrt(xp.where(values > 0, values, xp.zeros_like(values)))
    return (vectors * values) @ xp.matrix_transpose(vectors)


def _outer(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.sum(x @ xp.matrix_transpose(x), axis=0)


def _inner(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.sum(xp.matrix_transpose(x) @ x, axis=0)


def _rows_of(x: Array) -> list[Array]:
    return [x[i, ...] for i in range(x.shape[0])]
