"""The base of the solvers' programs (see :class:`geodiag.oracles.base.Program`)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields

from geodiag.blocks import Array, Blocks, device, namespace
from geodiag.norms.base import Norm


@dataclass(frozen=True)
class NormProgram:
    """A program that depends on a norm, and on hashable settings: its other fields."""

    norm: Norm

    @property
    def key(self) -> Hashable | None:
        """What the program does; None if its norm could change after it was compiled."""
        norm = self.norm.key
        settings = tuple(getattr(self, f.name) for f in fields(self) if f.name != "norm")
        return None if norm is None else (type(self), norm, settings)


def spent(like: Blocks, count: int) -> Array:
    """``count`` products, as a 0-d integer where the blocks live."""
    x = next(iter(like.values()))
    return namespace(like).full((), count, dtype=namespace(like).int32, device=device(x))
