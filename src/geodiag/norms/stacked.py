"""Norms of tensors that stack others: scanned layers, experts, heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from geodiag.blocks import Array, Blocks
from geodiag.core.selection import assign
from geodiag.core.slices import Slices
from geodiag.core.spaces import MatrixView, Space
from geodiag.core.validation import is_whole
from geodiag.envelopes import Envelope, Sliced
from geodiag.errors import ArgumentError, NormError, shown
from geodiag.norms.base import Face, Norm, QuadraticNorm, UnboundNorm, require_norm
from geodiag.norms.quadratic import FromMaps

Axes = int | tuple[int, ...] | MatrixView


class Stacked(UnboundNorm):
    """``norm``, of tensors some of which are stacks: their slices count as tensors by themselves.

    A scanned network keeps one array (layers, in, out) for a matrix in each layer; mixtures keep
    one for all experts. Undeclared, more than two axes are merged to one matrix, as those of
    convolution kernels are. The slices of ``kernel`` are named ``kernel.0``, ``kernel.1``, …: so
    all is as for the network without the scan, by any norm.

    Args:
        norm: the norm of the slices and the other tensors together.
        axes: name pattern → the axes that number the slices: n for the first n, or a tuple of
            axes. Or a :class:`~geodiag.core.spaces.MatrixView`: all axes that it does not name.

    Raises (when bound to the parameters):
        ParameterError: a pattern matches no tensor.
        NormError: a tensor has no such axes.

    Examples:
        >>> shapes, layers = {"layers": (2, 3, 3)}, Stacked(geodiag.norms.Spectral(), {"layers": 1})
        >>> round(float(geodiag.sharpness(np.eye(18), layers, shapes=shapes)), 6)  # rank 3, twice
        6.0
    """

    def __init__(self, norm: Norm, axes: Mapping[str, Axes]) -> None:
        self.norm = require_norm(norm, "Stacked")
        if not isinstance(axes, Mapping) or not axes or not all(map(_are_axes, axes.values())):
            raise ArgumentError(
                "axes= of Stacked must be a dict of name pattern → number or tuple of axes",
                got=shown(axes),
                do='pass e.g. {"layers": 1}: the first axis numbers the layers',
            )
        self.axes = tuple((pattern, _plain(each)) for pattern, each in axes.items())
        self.decomposes = self.norm.decomposes

    def bind(self, space: Space) -> Norm:
        slices = self.slices(space)
        bound = self.norm.bind(slices.slices_of(space))
        if bound.entrywise:  # it is the same of slices and of wholes
            return self.norm.bind(space)
        if isinstance(bound, QuadraticNorm):
            metric, inverse = bound.metric, bound.inverse_metric
            return FromMaps(
                lambda d: slices.join(metric(slices.split(d))),
                lambda g: slices.join(inverse(slices.split(g))),
                repr(self),
            )
        return SlicedNorm(bound, slices, repr(self))

    def slices(self, space: Space) -> Slices:
        """The slices of the tensors of a space.

        Raises:
            ParameterError, NormError: as for the class.
        """
        axes, stacks, views = dict(self.axes), {}, dict(space.matrix_view)
        for pattern, names in assign(axes, space.names).items():
            for name in names:
                stack, view = _stack(axes[pattern], name, space.shapes[name])
                if stack and space.size_of(name):
                    stacks[name] = stack
                if view is not None:
                    views[name] = view
        shapes = tuple((name, tuple(shape)) for name, shape in space.shapes.items())
        found = Slices(shapes, tuple(stacks.items()), tuple(views.items()))
        names = [each for name in space.names for each in found.names_of(name)]
        if len(set(names)) < len(names):
            raise NormError("the slices of a tensor have the names of others", got=shown(names))
        return found

    def __repr__(self) -> str:
        return f"Stacked({self.norm!r}, {dict(self.axes)})"


class SlicedNorm(Norm):
    """What :class:`Stacked` binds to: a norm that is bound to the slices.

    Attributes:
        norm: of the slices.
        slices: those of the tensors that are measured.
    """

    def __init__(self, norm: Norm, slices: Slices, name: str) -> None:
        self.norm, self.slices, self._name = norm, slices, name
        self.decomposes = norm.decomposes

    def value(self, d: Blocks) -> Array:
        return self.norm.value(self.slices.split(d))

    def lmo(self, g: Blocks) -> Blocks:
        return self.slices.join(self.norm.lmo(self.slices.split(g)))

    def lmos(self, gs: Blocks) -> Blocks:
        return self.slices.join(self.norm.lmos(self.slices.split(gs, lead=1)), lead=1)

    def dual(self, g: Blocks) -> Array:
        return self.norm.dual(self.slices.split(g))

    def envelope(self, space: Space) -> Envelope | None:
        inner = self.norm.envelope(self.slices.slices_of(space))
        return None if inner is None else Sliced(inner, self.slices)

    def faces(self, space: Space) -> Iterator[Face] | None:
        faces = self.norm.faces(self.slices.slices_of(space))
        if faces is None:
            return None
        places, start = {}, 0
        for name, shape in space.shapes.items():
            size = space.size_of(name)
            places[name] = np.reshape(np.arange(start, start + size), shape)
            start += size
        order = np.concatenate([x.reshape(-1) for x in self.slices.split(places).values()])
        back = np.argsort(order)
        return ((point[back], basis[back, :]) for point, basis in faces)

    def __repr__(self) -> str:
        return self._name


def _are_axes(axes: Any) -> bool:
    if isinstance(axes, MatrixView):
        return True
    if isinstance(axes, (tuple, list)):
        return bool(axes) and all(map(is_whole, axes))
    return is_whole(axes) and axes > 0


def _plain(axes: Any) -> Axes:
    return tuple(map(int, axes)) if isinstance(axes, (tuple, list)) else axes


def _stack(
    axes: Axes, name: str, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], MatrixView | None]:
    """The stack axes of one tensor, and its view where ``axes`` is one."""
    ndim = len(shape)
    if isinstance(axes, MatrixView):
        used = {*axes.rows, *axes.cols}
        if len(used) < len(axes.rows) + len(axes.cols) or not used <= set(range(ndim)):
            raise NormError(f"{name!r} has no such axes", got=f"{axes} for shape {shape}")
        return tuple(i for i in range(ndim) if i not in used), axes
    chosen = range(axes) if isinstance(axes, int) else axes
    found = sorted({i + ndim if i < 0 else i for i in chosen})
    if len(found) < len(chosen) or not set(found) <= set(range(ndim)):
        raise NormError(
            f"{name!r} has no such stack axes",
            got=f"{axes} for shape {shape}",
            do="a number n means the first n axes; for others pass a tuple of axes",
        )
    return tuple(found), None
