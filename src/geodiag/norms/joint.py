"""Norms bound to the tensors they measure: parts, combined by max, sum or ℓ2.

What :mod:`geodiag.norms.composite` binds to. An estimator may look at ``parts``: a sum of parts is
maximised part by part (Blockwise), polyhedral parts give polyhedral wholes (Enumerate).
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from geodiag.blocks import Array, Blocks, array_namespace, device, dot, namespace, positive, scale
from geodiag.core.spaces import Space
from geodiag.core.stacks import dots, rescale
from geodiag.envelopes import Envelope, Hull, Piece, Product
from geodiag.norms.base import Face, Norm

PlacedFaces = list[tuple[np.ndarray[Any, Any], list[Face]]]


class BatchedNorm(Norm):
    """A norm of one tensor that can evaluate several instances, each on its tensor, in one call."""

    @staticmethod
    @abstractmethod
    def batched_value(norms: Sequence[Any], ds: Sequence[Blocks]) -> list[Array]:
        """``value`` of each norm on its blocks."""

    @staticmethod
    @abstractmethod
    def batched_dual(norms: Sequence[Any], gs: Sequence[Blocks]) -> list[Array]:
        """``dual`` of each norm on its blocks."""

    @staticmethod
    @abstractmethod
    def batched_lmo(norms: Sequence[Any], gs: Sequence[Blocks]) -> list[Blocks]:
        """``lmo`` of each norm on its blocks."""


@dataclass(frozen=True)
class Part:
    """Some tensors, the norm that measures them (already bound to them), and their radius."""

    names: tuple[str, ...]
    norm: Norm
    radius: float

    def of(self, blocks: Blocks) -> Blocks:
        return {name: blocks[name] for name in self.names}

    def scaled(self, piece: Blocks) -> Blocks:
        """A point of the norm's unit ball, as one of the ball of this radius."""
        return piece if self.radius == 1.0 else scale(piece, self.radius)


class Joint(Norm):
    """A norm bound to its parts; subclasses say how the parts' values combine."""

    joined: ClassVar[type[Product | Hull]] = Hull  # of the parts' envelopes

    def __init__(self, parts: tuple[Part, ...], name: str) -> None:
        self.parts, self._name = parts, name
        self.decomposes = any(part.norm.decomposes for part in parts)

    def values(self, d: Blocks) -> Array:
        """The parts' values, radii applied, as a vector."""
        values = self._ask("value", d)
        return namespace(d).stack(
            [value / part.radius for part, value in zip(self.parts, values, strict=True)]
        )

    def duals(self, g: Blocks) -> Array:
        """The parts' dual norms, radii applied, as a vector."""
        duals = self._ask("dual", g)
        return namespace(g).stack(
            [dual * part.radius for part, dual in zip(self.parts, duals, strict=True)]
        )

    def _lmos(self, g: Blocks) -> list[Blocks]:
        """Each part's LMO times its radius."""
        lmos = self._ask("lmo", g)
        return [part.scaled(lmo) for part, lmo in zip(self.parts, lmos, strict=True)]

    def _ask(self, what: str, blocks: Blocks) -> list[Any]:
        """``value``, ``dual`` or ``lmo`` of each part; in one call for a :class:`BatchedNorm`."""
        answers: dict[int, Any] = {}
        groups: dict[type[Norm], list[int]] = {}
        for i, part in enumerate(self.parts):
            if isinstance(part.norm, BatchedNorm):
                groups.setdefault(type(part.norm), []).append(i)
            else:
                answers[i] = getattr(part.norm, what)(part.of(blocks))
        for kind, places in groups.items():
            parts = [self.parts[i] for i in places]
            evaluate = getattr(kind, f"batched_{what}")
            found = evaluate([part.norm for part in parts], [part.of(blocks) for part in parts])
            answers.update(zip(places, found, strict=True))
        return [answers[i] for i in range(len(self.parts))]

    def _slopes(self, g: Blocks, lmos: list[Blocks]) -> Array:
        """The duals as ⟨g, lmo⟩, from the LMOs at hand."""
        pairs = zip(self.parts, lmos, strict=True)
        return namespace(g).stack([dot(part.of(g), lmo) for part, lmo in pairs])

    def _many(self, gs: Blocks) -> list[Blocks]:
        """``_lmos`` of K directions stacked on a leading axis."""
        return [part.scaled(part.norm.lmos(part.of(gs))) for part in self.parts]

    def _merge(self, g: Blocks, pieces: list[Blocks], weights: Array | None) -> Blocks:
        """The parts' pieces, weighted, as one; zero for tensors that no part measures."""
        found: Blocks = {}
        for i, piece in enumerate(pieces):
            found.update(piece if weights is None else _weighted(piece, weights[i, ...]))
        xp = namespace(g)
        unmeasured = {name: xp.zeros_like(x) for name, x in g.items() if name not in found}
        return g | unmeasured | found

    def envelope(self, space: Space) -> Envelope | None:
        pieces = []
        for part in self.parts:
            envelope = part.norm.envelope(space.select(part.names))
            if envelope is None:
                return None
            pieces.append(Piece(part.names, envelope, part.radius))
        return self.joined(pieces)

    def _part_faces(self, space: Space) -> PlacedFaces | None:
        """Per part: the places of its entries in ``space``, and all faces (both signs)."""
        offsets = np.cumsum([0] + [space.size_of(n) for n in space.names])
        spans = {n: np.arange(offsets[i], offsets[i + 1]) for i, n in enumerate(space.names)}
        out = []
        for part in self.parts:
            faces = part.norm.faces(space.select(part.names))
            if faces is None:
                return None
            places = np.concatenate([spans[n] for n in part.names])
            half = [(point * part.radius, basis) for point, basis in faces]
            out.append((places, half + [(-point, basis) for point, basis in half]))
        return out

    def __repr__(self) -> str:
        return self._name


class MaxJoint(Joint):
    """max over parts: a product of balls."""

    joined = Product

    def value(self, d: Blocks) -> Array:
        return namespace(d).max(self.values(d))

    def lmo(self, g: Blocks) -> Blocks:
        return self._merge(g, self._lmos(g), None)

    def lmos(self, gs: Blocks) -> Blocks:
        return self._merge(gs, self._many(gs), None)

    def dual(self, g: Blocks) -> Array:
        return namespace(g).sum(self.duals(g))

    def faces(self, space: Space) -> Iterator[Face] | None:
        parts = self._part_faces(space)
        return None if parts is None else _product_faces(parts, space.size)


class _WeightedLmo(Joint):
    """A joint norm whose LMO is the parts' own LMOs, weighted by the parts' dual norms."""

    @abstractmethod
    def weights(self, duals: Array) -> Array:
        """Of each part, by the parts' duals on the first axis."""

    def lmo(self, g: Blocks) -> Blocks:
        lmos = self._lmos(g)
        return self._merge(g, lmos, self.weights(self._slopes(g, lmos)))

    def lmos(self, gs: Blocks) -> Blocks:
        if any(isinstance(part.norm, BatchedNorm) for part in self.parts):
            return super().lmos(gs)  # one call for all tensors of a direction is faster
        lmos, xp = self._many(gs), namespace(gs)
        pairs = zip(self.parts, lmos, strict=True)
        duals = xp.stack([dots(part.of(gs), piece) for part, piece in pairs])
        return self._merge(gs, lmos, self.weights(duals))


class SumJoint(_WeightedLmo):
    """Sum over parts: the ball is the convex hull of the parts' balls."""

    def value(self, d: Blocks) -> Array:
        return namespace(d).sum(self.values(d))

    def weights(self, duals: Array) -> Array:
        xp = array_namespace(duals)
        best = xp.argmax(duals, axis=0)
        index = xp.arange(len(self.parts), dtype=best.dtype, device=device(duals))
        index = xp.reshape(index, (-1,) + (1,) * best.ndim)
        return xp.astype(index == best, duals.dtype)

    def dual(self, g: Blocks) -> Array:
        return namespace(g).max(self.duals(g))

    def faces(self, space: Space) -> Iterator[Face] | None:
        parts = self._part_faces(space)
        return None if parts is None else _join_faces(parts, space.size)


class L2Joint(_WeightedLmo):
    """√ of the sum of squares over parts."""

    def value(self, d: Blocks) -> Array:
        return _length(self.values(d))

    def weights(self, duals: Array) -> Array:
        return duals / positive(_length(duals))

    def dual(self, g: Blocks) -> Array:
        return _length(self.duals(g))


def _length(v: Array) -> Array:
    xp = array_namespace(v)
    return xp.sqrt(xp.sum(v * v, axis=0))


def _weighted(piece: Blocks, weight: Array) -> Blocks:
    """A piece times its weight; K stacked ones times theirs."""
    return rescale(piece, weight) if weight.ndim else scale(piece, weight)


def _product_faces(parts: PlacedFaces, n: int) -> Iterator[Face]:
    """Faces of a product of balls: a proper face of some parts, the whole ball of the others."""
    whole = [[*faces, None] for _, faces in parts]
    for choice in itertools.product(*whole):
        if all(face is None for face in choice):
            continue
        point, columns = np.zeros(n), []
        for (places, _), face in zip(parts, choice, strict=True):
            inner = np.eye(places.size) if face is None else face[1]
            if face is not None:
                point[places] = face[0]
            columns.append(_embed(inner, places, n))
        yield point, np.hstack(columns)


def _join_faces(parts: PlacedFaces, n: int) -> Iterator[Face]:
    """Faces of the convex hull of balls: the hull of one proper face each of some parts."""
    for choice in itertools.product(*[[*faces, None] for _, faces in parts]):
        points, columns = [], []
        for (places, _), face in zip(parts, choice, strict=True):
            if face is not None:
                points.append(_embed(face[0][:, None], places, n))
                columns.append(_embed(face[1], places, n))
        if points:
            corners = np.hstack(points)
            yield corners.mean(axis=1), np.hstack([*columns, corners[:, 1:] - corners[:, :1]])


def _embed(columns: np.ndarray[Any, Any], places: np.ndarray[Any, Any], n: int) -> Any:
    out = np.zeros((n, columns.shape[1]))
    out[places] = columns
    return out
