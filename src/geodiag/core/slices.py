"""Tensors that stack others, taken apart: what scanned layers, experts and heads are kept in."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from geodiag.blocks import Blocks, array_namespace
from geodiag.core.spaces import MatrixView, Space


@dataclass(frozen=True)
class Slices:
    """The slices of some tensors, each under a name of its own, and all other tensors.

    Attributes:
        shapes: of the whole tensors, by name.
        stacks: by name, the axes that number the slices, in ascending order.
        views: by name, how the whole reads as a matrix, or as a stack of them.

    Examples:
        >>> space = Space.of({"layers": np.zeros((2, 3, 4)), "head": np.zeros((4, 5))})
        >>> Slices.of(space, {"layers": (0,)}).slices_of(space).shapes
        {'layers.0': (3, 4), 'layers.1': (3, 4), 'head': (4, 5)}
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    stacks: tuple[tuple[str, tuple[int, ...]], ...]
    views: tuple[tuple[str, MatrixView], ...]

    @classmethod
    def of(cls, space: Space, stacks: Mapping[str, tuple[int, ...]]) -> Slices:
        """Those of the tensors of a space, which read as matrices as the space says."""
        shapes = tuple((name, tuple(shape)) for name, shape in space.shapes.items())
        return cls(shapes, tuple(stacks.items()), tuple(space.matrix_view.items()))

    def names_of(self, name: str) -> list[str]:
        """The names of a tensor's slices, in order; its own where it is not taken apart."""
        if name not in self._stacks:
            return [name]
        sizes = [self._shapes[name][i] for i in self._stacks[name]]
        return [".".join(map(str, (name, *i))) for i in itertools.product(*map(range, sizes))]

    def slices_of(self, whole: Space) -> Space:
        """The space of the slices of a space."""
        shapes, views, places, known = {}, {}, {}, dict(self.views)
        for name, shape in self.shapes:
            stack = self._stacks.get(name, ())
            rest = [i for i in range(len(shape)) if i not in stack]
            for each in self.names_of(name):
                shapes[each] = tuple(shape[i] for i in rest)
                if not stack and name in whole.places:
                    places[each] = whole.places[name]
                if len(rest) > 1:
                    views[each] = _without(known.get(name), rest)
        return Space(shapes, views, whole.asarray, places, whole.split)

    def split(self, blocks: Blocks, lead: int = 0) -> Blocks:
        """Blocks of whole tensors as blocks of slices; ``lead``: axes before the tensors' own."""
        found: Blocks = {}
        for name, x in blocks.items():
            if name not in self._stacks:
                found[name] = x
                continue
            names = self.names_of(name)
            y = array_namespace(x).permute_dims(x, self._order(name, lead))
            y = array_namespace(y).reshape(y, (*y.shape[:lead], len(names), *self._rest(name)))
            for k, each in enumerate(names):
                found[each] = y[:, k, ...] if lead else y[k, ...]
        return found

    def join(self, blocks: Blocks, lead: int = 0) -> Blocks:
        """Inverse of :meth:`split`."""
        found: Blocks = {}
        for name, shape in self.shapes:
            if name not in self._stacks:
                found[name] = blocks[name]
                continue
            slices = [blocks[each] for each in self.names_of(name)]
            y = array_namespace(*slices).stack(slices, axis=lead)
            sizes = [shape[i] for i in self._stacks[name]]
            order = self._order(name, lead)
            y = array_namespace(y).reshape(y, (*y.shape[:lead], *sizes, *self._rest(name)))
            back = tuple(order.index(i) for i in range(len(order)))
            found[name] = array_namespace(y).permute_dims(y, back)
        return found

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self.shapes)

    @cached_property
    def _stacks(self) -> dict[str, tuple[int, ...]]:
        return dict(self.stacks)

    def _others(self, name: str) -> list[int]:
        """The axes of the slices."""
        return [i for i in range(len(self._shapes[name])) if i not in self._stacks[name]]

    def _rest(self, name: str) -> tuple[int, ...]:
        return tuple(self._shapes[name][i] for i in self._others(name))

    def _order(self, name: str, lead: int) -> tuple[int, ...]:
        """The stack axes before the others."""
        return (*range(lead), *(i + lead for i in (*self._stacks[name], *self._others(name))))


def _without(view: MatrixView | None, rest: list[int]) -> MatrixView:
    """A view of a tensor for its slices, of which ``rest`` are the axes; rows stay rows."""
    if view is None:
        return MatrixView.first_axis_rows(len(rest))
    rows = tuple(rest.index(i) for i in view.rows if i in rest)
    if rows and len(rows) < len(rest):
        return MatrixView(rows, tuple(i for i in range(len(rest)) if i not in rows))
    # The rows' axis, the first or the last of all, is a stack axis.
    first = 0 in view.rows
    make = MatrixView.first_axis_rows if first else MatrixView.last_axis_rows
    return make(len(rest))
