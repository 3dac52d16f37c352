"""A geodiag plugin: the norm ``group_linf``, max over output rows of their ℓ2 norm.

Per matrix it is the operator norm from ℓ1 to ℓ2 of the transpose; descent in it normalizes every
row of the gradient (one row per neuron), so each neuron moves equally far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import geodiag
from geodiag.blocks import Array, Blocks, array_namespace, namespace
from geodiag.core.spaces import MatrixView, Space


class GroupLinf(geodiag.Norm):
    """max over tensors of the largest row ℓ2 norm; a vector or a scalar is one row.

    LMO: every row divided by its length; dual: the sum of the rows' lengths.
    """

    def __init__(self, views: Mapping[str, MatrixView] | None = None) -> None:
        # A tuple, which cannot change: what can, JAX would not compile.
        self.views = None if views is None else tuple(views.items())

    def bind(self, space: Space) -> GroupLinf:
        # Which axis of a tensor holds its outputs is for the framework's adapter to say.
        return GroupLinf(space.matrix_view)

    def value(self, d: Blocks) -> Array:
        xp = namespace(d)
        views = self._views(d)
        lengths = [_lengths(_rows(x, views.get(name))) for name, x in d.items()]
        return xp.max(xp.concat([xp.reshape(x, (-1,)) for x in lengths]))

    def lmo(self, g: Blocks) -> Blocks:
        views = self._views(g)
        return {name: _normalized(x, views.get(name)) for name, x in g.items()}

    def _views(self, blocks: Blocks) -> Mapping[str, MatrixView]:
        return Space.of(blocks).matrix_view if self.views is None else dict(self.views)


def _rows(x: Array, view: MatrixView | None) -> Array:
    if view is None:
        return array_namespace(x).reshape(x, (1, -1))
    return view.to_matrix(x)


def _lengths(rows: Array) -> Array:
    xp = array_namespace(rows)
    return xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))


def _normalized(x: Array, view: MatrixView | None) -> Array:
    xp = array_namespace(x)
    rows = _rows(x, view)
    lengths = _lengths(rows)
    unit = rows / xp.where(lengths > 0, lengths, xp.ones_like(lengths))
    if view is None:
        return xp.reshape(unit, x.shape)
    return view.from_matrix(unit, tuple(x.shape))


@geodiag.hookimpl
def geodiag_norms() -> Mapping[str, Callable[[], Any]]:
    """The norms of this package, by name."""
    return {"group_linf": GroupLinf}
