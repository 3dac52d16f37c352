"""A problem seen as one vector, so that solvers take one operation where tensors took many.

Small networks spend their time in the number of operations. Beyond ``LIMIT`` entries the copies
would cost more than they save, and tensors stay as they are; as do tensors that are split over
devices, which one vector would gather.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from geodiag.blocks import Array, Blocks, array_namespace, namespace
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.norms.quadratic import L2
from geodiag.norms.vector import L1, Linf
from geodiag.oracles.base import Oracle
from geodiag.spaces import Space

LIMIT = 2**22
NAME = "flat"
S = TypeVar("S")


class Flat:
    """Blocks of certain shapes, and stacks of them, as one vector each, and back."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        ends = [0, *itertools.accumulate(math.prod(shape) for shape in self.shapes.values())]
        self.spans = list(itertools.pairwise(ends))
        self.size = ends[-1]

    def flat(self, blocks: Blocks) -> Blocks:
        """Blocks as one of shape (n,)."""
        return self._joined(blocks, ())

    def flat_stack(self, stack: Blocks) -> Blocks:
        """A stack of K as one of shape (K, n)."""
        return self._joined(stack, (next(iter(stack.values())).shape[0],))

    def _joined(self, blocks: Blocks, lead: tuple[int, ...]) -> Blocks:
        xp = namespace(blocks)
        sizes = [b - a for a, b in self.spans]
        named = zip(self.shapes, sizes, strict=True)
        pieces = [xp.reshape(blocks[name], (*lead, size)) for name, size in named]
        return {NAME: pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=-1)}

    def random(self, space: Space, rng: np.random.Generator) -> Blocks:
        """The flat view of ``space.random(rng)``, moved to the device in one piece."""
        return {NAME: space.asarray(self.draw(rng))}

    def draw(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """The same, still on the host."""
        drawn = {name: rng.standard_normal(self.shapes[name]) for name in sorted(self.shapes)}
        return np.concatenate([drawn[name].ravel() for name in self.shapes])

    def full(self, flat: Blocks) -> Blocks:
        """Inverse of :meth:`flat` and :meth:`flat_stack`."""
        x = flat[NAME]
        xp = array_namespace(x)
        lead = tuple(x.shape[:-1])
        named = zip(self.shapes.items(), self.spans, strict=True)
        return {n: xp.reshape(x[..., a:b], (*lead, *shape)) for (n, shape), (a, b) in named}


def of(oracle: Oracle) -> Flat | None:
    """The flat view of an oracle's blocks, where it is the cheaper way."""
    space = oracle.space
    return Flat(space.shapes) if space.size <= LIMIT and not space.split else None


def view(oracle: Oracle, norm: Norm) -> tuple[Oracle, Norm, Flat | None]:
    """The oracle and the norm on one vector, where that is the cheaper way."""
    flat = of(oracle)
    if flat is None:
        return oracle, norm, None
    return _FlatOracle(oracle, flat), _flat_norm(norm, flat), flat


def quadratic(oracle: Oracle, norm: QuadraticNorm) -> tuple[Oracle, QuadraticNorm, Flat | None]:
    """:func:`view` for a quadratic norm."""
    seen, flat_norm, flat = view(oracle, norm)
    assert isinstance(flat_norm, QuadraticNorm)
    return seen, flat_norm, flat


def _flat_norm(norm: Norm, flat: Flat) -> Norm:
    if isinstance(norm, (L1, Linf, L2)):  # which see entries alone
        return norm
    return _FlatQuadratic(norm, flat) if isinstance(norm, QuadraticNorm) else _FlatNorm(norm, flat)


class _FlatOracle(Oracle):
    def __init__(self, oracle: Oracle, flat: Flat) -> None:
        self._oracle, self._flat = oracle, flat
        self.space = Space({NAME: (flat.size,)}, {}, oracle.space.asarray)
        self.free_hvps = oracle.free_hvps

    def hvp(self, d: Blocks) -> Blocks:
        return self._flat.flat(self._oracle.hvp(self._flat.full(d)))

    def hvps(self, ds: Blocks) -> Blocks:
        return self._flat.flat_stack(self._oracle.hvps(self._flat.full(ds)))

    def loop(self, cond: Callable[[S], Array], body: Callable[[S], S], state: S) -> S:
        return self._oracle.loop(cond, body, state)

    def scan(
        self, step: Callable[[S], tuple[S, tuple[Blocks, ...]]], state: S, length: int
    ) -> tuple[S, tuple[Blocks, ...]]:
        return self._oracle.scan(step, state, length)

    @property
    def precision(self) -> float:
        return self._oracle.precision

    def point(self) -> Blocks:
        return self._flat.flat(self._oracle.point())

    def loss(self) -> Array:
        return self._oracle.loss()

    def gradient(self) -> Blocks:
        return self._flat.flat(self._oracle.gradient())

    def loss_at(self, params: Blocks) -> Array:
        return self._oracle.loss_at(self._flat.full(params))

    def gradient_at(self, params: Blocks) -> Blocks:
        return self._flat.flat(self._oracle.gradient_at(self._flat.full(params)))


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
