"""The oracle of some of the tensors: the others are held fixed."""

from __future__ import annotations

from dataclasses import dataclass

from geodiag.blocks import Blocks, map_blocks, namespace, zeros_like
from geodiag.core.stacks import count_of
from geodiag.oracles import DelegatingOracle, Oracle
from geodiag.solvers import ravel


@dataclass(frozen=True)
class Restriction:
    """Wraps an oracle so that only these tensors are measured; the others are held fixed."""

    names: tuple[str, ...]

    def __call__(self, oracle: Oracle) -> Oracle:
        return PartOracle(oracle, self)


class PartOracle(DelegatingOracle):
    """The oracle of some tensors: directions are zero in all others."""

    def __init__(self, inner: Oracle, view: Restriction) -> None:
        super().__init__(inner, inner.space.select(view.names))
        self.view, self._zeros = view, zeros_like(inner.gradient())

    def inward(self, blocks: Blocks, stacked: bool = False) -> Blocks:
        if not stacked:
            return self._zeros | blocks
        count, xp = count_of(blocks), namespace(blocks)
        zeros = map_blocks(lambda x: xp.broadcast_to(x[None], (count, *x.shape)), self._zeros)
        return zeros | blocks

    def outward(self, blocks: Blocks, stacked: bool = False) -> Blocks:
        return {name: blocks[name] for name in self.names}

    def hvps(self, ds: Blocks) -> Blocks:
        # A compiler leaves out the products' other tensors; elsewhere they would take memory.
        compiled = self.grow is not None
        batched = compiled or self.inner.space.size <= ravel.LIMIT
        return super().hvps(ds) if batched else Oracle.hvps(self, ds)

    def inward_point(self, params: Blocks) -> Blocks:
        return self.inner.point() | params
