"""Envelopes of vectors: diagonal forms for ℓ∞, multiples of one form for quadratic norms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from geodiag.blocks import Array, Blocks, dot, map_blocks, namespace, scale, stack, unstack
from geodiag.core.spaces import Space
from geodiag.envelopes.base import Envelope, Form, Weights


class Diagonal(Envelope):
    """ℓ∞: ⟨d, diag(p) d⟩ ≤ Σp for |d_i| ≤ 1. One array of weights per tensor."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def interior(self) -> Weights:
        space = self._space
        ones = ((name, np.full(s, 1.0 / space.size)) for name, s in space.shapes.items())
        return tuple(space.place(name, x) for name, x in ones)

    def bound(self, weights: Weights) -> float:
        p = self._named(weights)
        return float(dot(p, map_blocks(namespace(p).ones_like, p)))

    def fit(self, images: Blocks, start: Weights | None = None) -> Weights:
        xp = namespace(images)
        return tuple(xp.sqrt(xp.sum(images[n] ** 2, axis=0)) for n in self._space.names)

    def form(self, weights: Weights) -> Form:
        p = self._named(weights)
        root = map_blocks(namespace(p).sqrt, p)
        return Form(
            self.bound(weights),
            lambda x: {name: x[name] * p[name] for name in x},
            lambda g: {name: g[name] / p[name] for name in g},
            lambda z: {name: z[name] / root[name] for name in z},
        )

    def _named(self, weights: Weights) -> Blocks:
        return dict(zip(self._space.names, weights, strict=True))


class Metric(Envelope):
    """p·Q for one form Q ≻ 0 with ⟨d, Qd⟩ ≤ t·‖d‖²: quadratic norms, with t = 1.

    ``apply`` and ``solve`` are Q and Q⁻¹ on plain blocks.
    """

    rigid = True

    def __init__(
        self,
        space: Space,
        apply: Callable[[Blocks], Blocks],
        solve: Callable[[Blocks], Blocks],
        t: float = 1.0,
    ) -> None:
        self._space, self._t = space, t
        self._apply, self._solve = _stacked(apply), _stacked(solve)

    def interior(self) -> Weights:
        return (self._space.asarray(np.asarray(1.0)),)

    def bound(self, weights: Weights) -> float:
        return float(weights[0]) * self._t

    def fit(self, images: Blocks, start: Weights | None = None) -> Weights:
        square = float(dot(images, self._solve(images)))
        return (self._space.asarray(np.asarray(math.sqrt(max(square, 0.0) / self._t))),)

    def form(self, weights: Weights) -> Form:
        p = weights[0]
        return Form(
            self.bound(weights),
            lambda x: scale(self._apply(x), p),
            lambda g: scale(self._solve(g), 1 / p),
            self._root(p),
        )

    def _root(self, p: Array) -> Callable[[Blocks], Blocks] | None:
        return None


class _Euclidean(Metric):
    def __init__(self, space: Space, t: float) -> None:
        super().__init__(space, lambda d: d, lambda g: g, t)
        self._apply = self._solve = lambda x: x

    def _root(self, p: Array) -> Callable[[Blocks], Blocks]:
        return lambda z: scale(z, 1 / p**0.5)


def euclidean(space: Space, t: float = 1.0) -> Envelope:
    """The envelope of any norm with ‖d‖₂² ≤ t·‖d‖² for every d: ℓ1, nuclear, ℓ2 (t = 1)."""
    return _Euclidean(space, t)


def _stacked(f: Callable[[Blocks], Blocks]) -> Callable[[Blocks], Blocks]:
    return lambda x: stack([f(row) for row in unstack(x)])
