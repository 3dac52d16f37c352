"""ℓ∞ and ℓ1 of all parameters together: the geometries of sign descent and coordinate descent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from geodiag.blocks import Array, Blocks, array_namespace, device, largest, map_blocks, namespace
from geodiag.core.spaces import Space
from geodiag.envelopes import Diagonal, Envelope, euclidean
from geodiag.norms.base import Face, Norm


class Linf(Norm):
    """max |d_i| over every parameter. LMO: sign(g); dual: ‖g‖₁ (sign descent, SignGD).

    Examples:
        >>> shapes = {"a": (2,), "b": (2,)}
        >>> round(float(geodiag.sharpness(np.eye(4), Linf(), shapes=shapes)), 6)
        4.0
    """

    entrywise = True

    def value(self, d: Blocks) -> Array:
        return largest(d)

    def lmo(self, g: Blocks) -> Blocks:
        return map_blocks(namespace(g).sign, g)

    def lmos(self, gs: Blocks) -> Blocks:
        return self.lmo(gs)

    def dual(self, g: Blocks) -> Array:
        return L1().value(g)

    def envelope(self, space: Space) -> Envelope:
        return Diagonal(space)

    def faces(self, space: Space) -> Iterator[Face]:
        identity = np.eye(space.size)
        for point in _signs(space.size):
            yield point, identity[:, point == 0]


class L1(Norm):
    """Σ |d_i| over every parameter. LMO: the largest coordinate alone; dual: max |g_i|.

    Examples:
        >>> shapes = {"a": (2,), "b": (2,)}
        >>> round(float(geodiag.sharpness(np.eye(4), L1(), shapes=shapes)), 6)
        1.0
    """

    entrywise = True

    def value(self, d: Blocks) -> Array:
        xp = namespace(d)
        sums = [xp.sum(xp.abs(x)) for x in d.values()]
        return sums[0] if len(sums) == 1 else xp.sum(xp.stack(sums))

    def lmo(self, g: Blocks) -> Blocks:
        stacked = self.lmos({name: x[None, ...] for name, x in g.items()})
        return {name: x[0, ...] for name, x in stacked.items()}

    def lmos(self, gs: Blocks) -> Blocks:
        xp = namespace(gs)
        # Not by way of one vector, which would gather tensors that are split over devices.
        peaks = xp.stack([_largest_of_each(x) for x in gs.values()])
        best = xp.argmax(peaks, axis=0)
        answer = {}
        for i, (name, x) in enumerate(gs.items()):
            column = (x.shape[0], *(1 for _ in x.shape[1:]))
            place, size = _numbered(x), math.prod(x.shape[1:])
            peak, chosen = xp.reshape(peaks[i, ...], column), xp.reshape(best == i, column)
            # NaN counts as the largest, and stays NaN.
            here = ((xp.abs(x) == peak) | (x != x)) & chosen
            inner = tuple(range(1, x.ndim))
            first = xp.min(xp.where(here, place, size), axis=inner, keepdims=True) if size else size
            answer[name] = xp.where(here & (place == first), xp.sign(x), xp.zeros_like(x))
        return answer

    def dual(self, g: Blocks) -> Array:
        return Linf().value(g)

    def envelope(self, space: Space) -> Envelope:
        return euclidean(space)

    def faces(self, space: Space) -> Iterator[Face]:
        for point in _signs(space.size):
            support = np.flatnonzero(point)
            corners = np.zeros((space.size, support.size))
            corners[support, np.arange(support.size)] = point[support]
            yield corners.mean(axis=1), corners[:, 1:] - corners[:, :1]


def _signs(n: int) -> Iterator[np.ndarray[Any, Any]]:
    """All vectors of −1, 0 and 1 but zero, one of each ± pair."""
    for signs in itertools.product((-1.0, 0.0, 1.0), repeat=n):
        if next((s for s in signs if s), 0.0) > 0:
            yield np.asarray(signs)


def _numbered(x: Array) -> Array:
    """The row-major number of each entry of a member of a stack."""
    xp = array_namespace(x)
    number = xp.zeros((), dtype=xp.int32, device=device(x))
    for n in x.shape[1:]:
        along = xp.arange(n, dtype=xp.int32, device=device(x))
        number = number[..., None] * n + along
    return number


def _largest_of_each(x: Array) -> Array:
    """max |x| of each member of a stack, and zero for empty ones."""
    xp = array_namespace(x)
    inner = tuple(range(1, x.ndim))
    return xp.sum(x, axis=inner) if 0 in x.shape else xp.max(xp.abs(x), axis=inner)
