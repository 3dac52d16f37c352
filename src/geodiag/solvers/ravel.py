"""A problem ravelled to one vector, so that solvers need one operation instead of one per tensor.

In small networks the number of operations decides the time. Beyond ``LIMIT`` entries the copies
would cost more than they save, so tensors stay as they are. So do tensors that are sharded, which
one vector would gather on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from geodiag.blocks import Array, Blocks
from geodiag.core.spaces import Space
from geodiag.core.stacks import count_of
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.oracles.wrappers import DelegatingOracle

LIMIT = 2**22
NAME = "flat"


class Flat:
    """Turns blocks of a space, and stacks of them, into one vector each, and back."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def flat(self, blocks: Blocks) -> Blocks:
        """Blocks as one of shape (n,)."""
        return {NAME: self.space.ravel(blocks)}

    def flat_stack(self, stack: Blocks) -> Blocks:
        """A stack of K as one of shape (K, n)."""
        return {NAME: self.space.ravel(stack, (count_of(stack),))}

    def of(self, hvp: Callable[[Blocks], Blocks]) -> Callable[[Blocks], Blocks]:
        """Products on the vector."""
        return lambda d: self.flat(hvp(self.full(d)))

    def draw(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """The vector of ``space.random(rng)``, on the host."""
        drawn = self.space.drawn(rng)
        return np.concatenate([drawn[name].ravel() for name in self.space.shapes])

    def full(self, flat: Blocks) -> Blocks:
        """Inverse of :meth:`flat` and :meth:`flat_stack`."""
        return self.space.unravel(flat[NAME])


def of(oracle: Oracle) -> Flat | None:
    """How to ravel an oracle's blocks, if that is cheaper."""
    space = oracle.space
    return Flat(space) if space.size <= LIMIT and not space.split else None


def view(oracle: Oracle, norm: Norm) -> tuple[Oracle, Norm, Flat | None]:
    """The oracle and the norm on one vector, if that is cheaper."""
    flat = of(oracle)
    if flat is None:
        return oracle, norm, None
    return _FlatOracle(oracle, flat), norm_on(flat, norm), flat


def quadratic(oracle: Oracle, norm: QuadraticNorm) -> tuple[Oracle, QuadraticNorm, Flat | None]:
    """:func:`view` for a quadratic norm."""
    seen, flat_norm, flat = view(oracle, norm)
    assert isinstance(flat_norm, QuadraticNorm)
    return seen, flat_norm, flat


def norm_on(flat: Flat, norm: Norm) -> Norm:
    """The norm of the vector."""
    if norm.entrywise:
        return norm
    return _FlatQuadratic(norm, flat) if isinstance(norm, QuadraticNorm) else _FlatNorm(norm, flat)


class _FlatOracle(DelegatingOracle):
    def __init__(self, inner: Oracle, flat: Flat) -> None:
        super().__init__(inner, Space({NAME: (flat.space.size,)}, {}, inner.space.asarray))
        self._flat, self.view = flat, _ravelled

    def inward(self, blocks: Blocks, stacked: bool = False) -> Blocks:
        return self._flat.full(blocks)

    def outward(self, blocks: Blocks, stacked: bool = False) -> Blocks:
        return self._flat.flat_stack(blocks) if stacked else self._flat.flat(blocks)


def _ravelled(oracle: Oracle) -> Oracle:
    return _FlatOracle(oracle, Flat(oracle.space))


class _FlatNorm(Norm):
    def __init__(self, norm: Norm, flat: Flat) -> None:
        self.norm, self._flat = norm, flat

    def value(self, d: Blocks) -> Array:
        return self.norm.value(self._flat.full(d))

    def lmo(self, g: Blocks) -> Blocks:
        return self._flat.flat(self.norm.lmo(self._flat.full(g)))

    def lmos(self, gs: Blocks) -> Blocks:
        return self._flat.flat_stack(self.norm.lmos(self._flat.full(gs)))


class _FlatQuadratic(QuadraticNorm):
    def __init__(self, norm: QuadraticNorm, flat: Flat) -> None:
        self.norm, self._flat = norm, flat

    def metric(self, d: Blocks) -> Blocks:
        return self._flat.flat(self.norm.metric(self._flat.full(d)))

    def inverse_metric(self, g: Blocks) -> Blocks:
        return self._flat.flat(self.norm.inverse_metric(self._flat.full(g)))
