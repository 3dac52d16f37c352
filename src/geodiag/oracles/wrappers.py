"""Oracles around oracles: counting, and finite-difference Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from geodiag.blocks import (
    Array,
    Blocks,
    axpy,
    epsilon,
    map_blocks,
    namespace,
    norm2,
    scale,
    subtract,
)
from geodiag.oracles.base import Oracle, Program

PEAK = 1.37
S = TypeVar("S")


class CountingOracle(Oracle):
    """Counts Hessian-vector products; a stack of k directions counts k."""

    def __init__(self, oracle: Oracle) -> None:
        self.inner = oracle
        self.space = oracle.space
        self.free_hvps = oracle.free_hvps
        self.num_hvps = 0

    @property
    def notes(self) -> tuple[str, ...]:
        return self.inner.notes

    @property
    def precision(self) -> float:
        return self.inner.precision

    def again(self, d: Blocks) -> Blocks | None:
        return self.inner.again(d)

    def surroundings(self) -> AbstractContextManager[Any]:
        return self.inner.surroundings()

    def point(self) -> Blocks:
        return self.inner.point()

    def loss(self) -> Array:
        return self.inner.loss()

    def gradient(self) -> Blocks:
        return self.inner.gradient()

    def hvp(self, d: Blocks) -> Blocks:
        self.num_hvps += 1
        return self.inner.hvp(d)

    def hvps(self, ds: Blocks) -> Blocks:
        self.num_hvps += int(next(iter(ds.values())).shape[0])
        return self.inner.hvps(ds)

    def loss_at(self, params: Blocks) -> Array:
        return self.inner.loss_at(params)

    def gradient_at(self, params: Blocks) -> Blocks:
        return self.inner.gradient_at(params)

    def loop(self, cond: Callable[[S], Any], body: Callable[[S], S], state: S) -> S:
        return self.inner.loop(cond, body, state)

    def scan(
        self, step: Callable[[S], tuple[S, tuple[Blocks, ...]]], state: S, length: int
    ) -> tuple[S, tuple[Blocks, ...]]:
        return self.inner.scan(step, state, length)

    def run(self, program: Program[S], *arguments: Any, asks: Oracle | None = None) -> S:
        """Counted as asked or, where nothing was, by what the (compiled) program has spent."""
        before = self.num_hvps
        answer: Any = self.inner.run(program, *arguments, asks=asks or self)
        if self.num_hvps == before:
            self.num_hvps += int(answer.num_hvps)
        return answer  # type: ignore[no-any-return]


def finite_difference_hvp(
    gradient_at: Callable[[Blocks], Blocks],
    point: Blocks,
    d: Blocks,
    eps: float = 0.0,
    factor: float = 1.0,
) -> Blocks:
    """∇²L(w) d by a central difference of gradients (two gradient evaluations).

    ``eps``: the relative rounding of the gradients, where it is coarser than the point's.
    ``factor``: of the step.

    The step h balances the truncation error, O(h²), against the gradient's rounding, O(ε/h):
    ε^{1/3} relative to the parameters, both in their length and in their largest entry, whichever
    asks for less. Expect a relative error of about ε^{2/3}, 4e-11 in float64 and 2e-5 in float32,
    for losses whose curvature varies over distances of the parameters' own size.
    """
    length, peak = float(norm2(d)), _peak(d)
    if length == 0.0:
        return scale(d, 0.0)
    reach = min((1.0 + float(norm2(point))) / length, (1.0 + _peak(point)) / peak)
    h = max(epsilon(point), eps) ** (1.0 / 3.0) * reach * factor
    forward, backward = gradient_at(axpy(h, d, point)), gradient_at(axpy(-h, d, point))
    return scale(subtract(forward, backward), 0.5 / h)


def shaken(
    point: Blocks, noise: Blocks, eps: float, d: Blocks, hvp: Callable[[Blocks, Blocks], Blocks]
) -> Blocks:
    """A product of which every number is rounded otherwise than in ``hvp(point, d)``.

    The parameters are moved by half a relative spacing ``eps`` times ``noise`` (normal), so that
    the forward pass rounds otherwise too. The direction is scaled for the product to a largest
    entry of order one, where small numbers do not vanish, and by no power of two, which would round
    alike.
    """
    moved = map_blocks(lambda w, z: w * (1 + 0.5 * eps * z), point, noise)
    c = PEAK / (_peak(d) or 1.0)
    return scale(hvp(moved, scale(d, c)), 1 / c)


def _peak(blocks: Blocks) -> float:
    """The largest absolute entry."""
    xp = namespace(blocks)
    return float(xp.max(xp.stack([xp.max(xp.abs(x)) for x in blocks.values() if 0 not in x.shape])))
