"""Oracles around oracles: the base that forwards every question, and the one that counts."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from geodiag.blocks import Array, Blocks
from geodiag.core.slices import Slices
from geodiag.core.spaces import Space
from geodiag.core.stacks import count_of
from geodiag.oracles.base import Oracle, Program

S = TypeVar("S")


class DelegatingOracle(Oracle):
    """Forwards every question to ``inner``; subclasses override only what differs.

    A subclass may show the inner oracle's parameters in another form (as one vector, or some of
    the tensors). It then overrides :meth:`inward` and :meth:`outward`, and sets :attr:`view`.

    Attributes:
        inner: the oracle that is asked.
        view: how another oracle is wrapped in the same way: a hashable function that holds no
            oracle. Programs run through it, so that they are compiled as a whole. None where the
            form of the parameters is that of ``inner``.
    """

    view: Callable[[Oracle], Oracle] | None = None

    def __init__(self, inner: Oracle, space: Space | None = None) -> None:
        self.inner = inner
        self.space = inner.space if space is None else space
        self.free_hvps = inner.free_hvps
        self.grow = inner.grow

    def inward(self, blocks: Blocks, stacked: bool = False) -> Blocks:
        """A direction of this oracle as one of ``inner``; ``stacked``: K of them."""
        return blocks

    def outward(self, blocks: Blocks, stacked: bool = False) -> Blocks:
        """Blocks of ``inner`` in this oracle's form; ``stacked``: K of them."""
        return blocks

    def inward_point(self, params: Blocks) -> Blocks:
        """Parameters of this oracle as parameters of ``inner``."""
        return self.inward(params)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.inner.notes

    @property
    def precision(self) -> float:
        return self.inner.precision

    @property
    def steady(self) -> bool:
        return self.inner.steady

    def in_float32(self) -> Oracle | None:
        inner = self.inner.in_float32()
        if inner is None:
            return None
        found = copy.copy(self)
        found.inner = inner
        return found

    def use_differences(self) -> bool:
        return self.inner.use_differences()

    def spare(self) -> None:
        self.inner.spare()

    def surroundings(self) -> AbstractContextManager[Any]:
        return self.inner.surroundings()

    def point(self) -> Blocks:
        return self.outward(self.inner.point())

    def loss(self) -> Array:
        return self.inner.loss()

    def gradient(self) -> Blocks:
        return self.outward(self.inner.gradient())

    def hvp(self, d: Blocks) -> Blocks:
        return self.outward(self.inner.hvp(self.inward(d)))

    def hvps(self, ds: Blocks) -> Blocks:
        return self.outward(self.inner.hvps(self.inward(ds, stacked=True)), stacked=True)

    def independent_hvp(self, d: Blocks) -> Blocks | None:
        image = self.inner.independent_hvp(self.inward(d))
        return None if image is None else self.outward(image)

    def loss_at(self, params: Blocks) -> Array:
        return self.inner.loss_at(self.inward_point(params))

    def gradient_at(self, params: Blocks) -> Blocks:
        return self.outward(self.inner.gradient_at(self.inward_point(params)))

    def loop(self, cond: Callable[[S], Any], body: Callable[[S], S], state: S) -> S:
        return self.inner.loop(cond, body, state)

    def scan(
        self, step: Callable[[S], tuple[S, tuple[Blocks, ...]]], state: S, length: int
    ) -> tuple[S, tuple[Blocks, ...]]:
        return self.inner.scan(step, state, length)

    def run(self, program: Program[S], *arguments: Any, asks: Oracle | None = None) -> S:
        asks = asks or self
        if self.view is None:
            return self.inner.run(program, *arguments, asks=asks)
        viewed = _Viewed(program, self.view, weakref.ref(self.inner), weakref.ref(asks))
        return self.inner.run(viewed, *arguments)


@dataclass(frozen=True)
class _Viewed(Program[S]):
    """A program that is asked through a view of the oracle that it is called with.

    Compiled functions keep their program: the references must not keep the oracle.
    """

    program: Program[S]
    view: Callable[[Oracle], Oracle]
    inner: weakref.ref[Oracle]
    asks: weakref.ref[Oracle]

    @property
    def key(self) -> Hashable | None:
        key = self.program.key
        return None if key is None else (type(self.program), key, self.view)

    def __call__(self, oracle: Oracle, *arguments: Any) -> S:
        asks = self.asks()
        eager = oracle is self.inner() and asks is not None  # else it is the compiler's oracle
        return self.program(asks if eager and asks else self.view(oracle), *arguments)


class CountingOracle(DelegatingOracle):
    """Counts Hessian-vector products; a stack of k directions counts k."""

    def __init__(self, inner: Oracle) -> None:
        super().__init__(inner)
        self.num_hvps = 0

    def in_float32(self) -> CountingOracle | None:
        return cast("CountingOracle | None", super().in_float32())

    def hvp(self, d: Blocks) -> Blocks:
        self.num_hvps += 1
        return super().hvp(d)

    def hvps(self, ds: Blocks) -> Blocks:
        self.num_hvps += count_of(ds)
        return super().hvps(ds)

    def run(self, program: Program[S], *arguments: Any, asks: Oracle | None = None) -> S:
        """Counted as asked or, where nothing was, by what the (compiled) program has spent."""
        before = self.num_hvps
        answer: Any = super().run(program, *arguments, asks=asks)
        if self.num_hvps == before and answer is not None:
            self.num_hvps += int(answer.num_hvps)
        return answer  # type: ignore[no-any-return]


class SlicedOracle(DelegatingOracle):
    """Shows tensors that stack others as their slices."""

    def __init__(self, inner: Oracle, slices: Slices) -> None:
        super().__init__(inner, slices.slices_of(inner.space))
        self._slices, self.view = slices, _OfSlices(slices)

    def inward(self, blocks: Blocks, stacked: bool = False) -> Blocks:
        return self._slices.join(blocks, lead=int(stacked))

    def outward(self, blocks: Blocks, stacked: bool = False) -> Blocks:
        return self._slices.split(blocks, lead=int(stacked))


@dataclass(frozen=True)
class _OfSlices:
    slices: Slices

    def __call__(self, oracle: Oracle) -> Oracle:
        return SlicedOracle(oracle, self.slices)
