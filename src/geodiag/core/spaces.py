"""The space that parameters live in: names, shapes, how each tensor reads as a matrix.

A :class:`Space` is all that a norm may know about the model. Framework layouts enter here and only
here: the adapter states which axes of a tensor are outputs, so a norm never guesses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    array_namespace,
    device,
    join_tensors,
    part_vector,
)


@dataclass(frozen=True)
class MatrixView:
    """How a tensor reads as a matrix: the axes that make its rows (outputs) and its columns."""

    rows: tuple[int, ...]
    cols: tuple[int, ...]

    @classmethod
    def first_axis_rows(cls, ndim: int) -> MatrixView:
        """Output axis first, as in torch weights and kernels: out × (in · k · k)."""
        return cls((0,), tuple(range(1, ndim)))

    @classmethod
    def last_axis_rows(cls, ndim: int) -> MatrixView:
        """Output axis last, as in flax kernels: out × (k · k · in)."""
        return cls((ndim - 1,), tuple(range(ndim - 1)))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(rows, cols) of a tensor of ``shape`` seen as a matrix."""
        return math.prod(shape[i] for i in self.rows), math.prod(shape[i] for i in self.cols)

    def to_matrix(self, x: Array) -> Array:
        """The tensor ``x`` as a (rows, cols) matrix."""
        xp = array_namespace(x)
        axes = self.rows + self.cols
        shape = self.shape(tuple(x.shape))
        if axes != tuple(range(x.ndim)):
            x = xp.permute_dims(x, axes)
        return x if x.ndim == 2 else xp.reshape(x, shape)

    def from_matrix(self, m: Array, shape: tuple[int, ...]) -> Array:
        """Inverse of :meth:`to_matrix` for a tensor of ``shape``."""
        xp = array_namespace(m)
        axes = self.rows + self.cols
        if len(shape) != 2:
            m = xp.reshape(m, tuple(shape[i] for i in axes))
        if axes == tuple(range(len(shape))):
            return m
        return xp.permute_dims(m, tuple(axes.index(i) for i in range(len(shape))))


Sizes = Sequence[int]
Shapes = Sequence[tuple[int, ...]]


def _inner(x: Array, y: Array) -> Array:
    return array_namespace(x).sum(x * y)


class Joints(NamedTuple):
    """How tensors become one vector and back, and Σxy of two; an adapter may know quicker ways."""

    join: Callable[[Sequence[Array], Sizes, tuple[int, ...]], Array] = join_tensors
    part: Callable[[Array, Sizes, Shapes], Iterable[Array]] = part_vector
    inner: Callable[[Array, Array], Array] = _inner


JOINTS = Joints()


def arrays_like(example: Array, dtype: Any) -> Callable[[Any], Array]:
    """A function to host arrays of this dtype where ``example`` is."""
    xp, where = array_namespace(example), device(example)
    return lambda x: xp.asarray(x, dtype=dtype, device=where)


@dataclass(frozen=True)
class Space:
    """Names and shapes of the measured parameters, their matrix views, and where arrays live.

    ``matrix_view`` holds the tensors that are matrices; vectors and scalars are absent from it.
    ``asarray`` moves any host array to the measurement namespace, dtype and device; ``places`` has
    the like for tensors that live elsewhere: in pieces on several devices.
    """

    shapes: Mapping[str, tuple[int, ...]]
    matrix_view: Mapping[str, MatrixView] = field(default_factory=dict)
    asarray: Callable[[Any], Array] = np.asarray
    places: Mapping[str, Callable[[Any], Array]] = field(default_factory=dict)
    # Whether tensors are in pieces: joined to one vector, they would be gathered on every device.
    split: bool = False
    joints: Joints = JOINTS

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @cached_property
    def size(self) -> int:
        """The number of parameters."""
        return sum(self._sizes)

    def size_of(self, name: str) -> int:
        """The number of entries of one tensor."""
        return math.prod(self.shapes[name])

    @cached_property
    def _sizes(self) -> list[int]:
        return [self.size_of(name) for name in self.shapes]

    @cached_property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.shapes.values()]

    def ravel(self, blocks: Blocks, lead: tuple[int, ...] = ()) -> Array:
        """Blocks as one vector, row-major, in name order; K stacked ones, with ``lead`` (K,)."""
        return self.joints.join([blocks[name] for name in self.shapes], self._sizes, lead)

    def unravel(self, vector: Array) -> Blocks:
        """Inverse of :meth:`ravel`."""
        parts = self.joints.part(vector, self._sizes, self._shapes)
        return dict(zip(self.shapes, parts, strict=True))

    def place(self, name: str, x: Any) -> Array:
        """``x``, of the shape of one tensor, where that tensor lives."""
        return self.places.get(name, self.asarray)(x)

    def select(self, names: Iterable[str]) -> Space:
        """The subspace of these tensors."""
        names = list(names)
        return Space(
            {n: self.shapes[n] for n in names},
            {n: self.matrix_view[n] for n in names if n in self.matrix_view},
            self.asarray,
            {n: self.places[n] for n in names if n in self.places},
            self.split,
            self.joints,
        )

    @classmethod
    def of(cls, blocks: Blocks) -> Space:
        """The space of bare blocks: two-axis arrays are matrices as they stand, rows first."""
        example = next(iter(blocks.values()))
        shapes = {name: tuple(x.shape) for name, x in blocks.items()}
        views = {name: MatrixView((0,), (1,)) for name, s in shapes.items() if len(s) == 2}
        return cls(shapes, views, arrays_like(example, example.dtype))

    @classmethod
    def rows_first(
        cls, shapes: Mapping[str, tuple[int, ...]], asarray: Callable[[Any], Array]
    ) -> Space:
        """A space whose tensors of two or more axes are matrices, their first axis the rows."""
        views = {n: MatrixView.first_axis_rows(len(s)) for n, s in shapes.items() if len(s) > 1}
        return cls(shapes, views, asarray)

    def random(self, rng: np.random.Generator) -> Blocks:
        """Standard normal blocks, drawn tensor by tensor in sorted name order.

        The draws come from NumPy, so every framework starts from the same points.
        """
        drawn = self.drawn(rng)
        return {name: self.place(name, drawn[name]) for name in self.shapes}

    def drawn(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """:meth:`random` on the host."""
        return {name: rng.standard_normal(self.shapes[name]) for name in sorted(self.shapes)}
