"""Envelopes of norms made of parts: block-diagonal forms, one block per part."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from geodiag.blocks import Blocks
from geodiag.envelopes.base import Envelope, Form, Map, Weights


@dataclass(frozen=True)
class Piece:
    """Some tensors, their norm's envelope, and the radius that divides the norm."""

    names: tuple[str, ...]
    envelope: Envelope
    radius: float


class _Joint(Envelope):
    """Block-diagonal forms; subclasses say how the parts' bounds combine."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = tuple(pieces)
        sizes = [len(piece.envelope.interior()) for piece in self._pieces]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]

    def interior(self) -> Weights:
        return self._joined([piece.envelope.interior() for piece in self._pieces])

    def bound(self, weights: Weights) -> float:
        each = zip(self._pieces, self._split(weights), strict=True)
        return self._over([p.envelope.bound(w) * p.radius**2 for p, w in each])

    @abstractmethod
    def _over(self, bounds: list[float]) -> float:
        """The bound of the whole from the bounds of the parts."""

    def form(self, weights: Weights) -> Form:
        parts = self._split(weights)
        forms = [p.envelope.form(w) for p, w in zip(self._pieces, parts, strict=True)]
        roots = [form.root for form in forms]
        return Form(
            self.bound(weights),
            self._blockwise([form.apply for form in forms]),
            self._blockwise([form.solve for form in forms]),
            None if None in roots else self._blockwise([r for r in roots if r is not None]),
        )

    def _fits(self, images: Blocks, start: Weights | None) -> list[Weights]:
        starts: list[Weights | None]
        starts = [None] * len(self._pieces) if start is None else [*self._split(start)]
        return [
            piece.envelope.fit({n: images[n] for n in piece.names}, first)
            for piece, first in zip(self._pieces, starts, strict=True)
        ]

    def _blockwise(self, maps: Sequence[Map]) -> Callable[[Blocks], Blocks]:
        def together(x: Blocks) -> Blocks:
            out = dict(x)  # keeps the order of the names
            for piece, f in zip(self._pieces, maps, strict=True):
                out.update(f({n: x[n] for n in piece.names}))
            return out

        return together

    def _split(self, weights: Weights) -> list[Weights]:
        return [weights[i:j] for i, j in zip(self._starts, self._starts[1:], strict=False)]

    def _joined(self, parts: Sequence[Weights]) -> Weights:
        return tuple(w for part in parts for w in part)


class Product(_Joint):
    """max over parts of ‖d_i‖/r_i: the parts' bounds, times r², add."""

    def fit(self, images: Blocks, start: Weights | None = None) -> Weights:
        # ⟨G, P⁻¹G⟩ + r²·t(P) is least at 1/r of what is best for r = 1.
        fits = zip(self._pieces, self._fits(images, start), strict=True)
        return self._joined([tuple(w / p.radius for w in fit) for p, fit in fits])

    def _over(self, bounds: list[float]) -> float:
        return sum(bounds)


class Hull(_Joint):
    """Sum, or ℓ2, over parts of ‖d_i‖/r_i: Σ‖d_i‖²/r_i² ≤ ‖d‖², so the largest bound counts."""

    def fit(self, images: Blocks, start: Weights | None = None) -> Weights:
        fits = self._fits(images, start)
        bounds = [p.envelope.bound(w) * p.radius for p, w in zip(self._pieces, fits, strict=True)]
        whole = math.sqrt(sum(b * b for b in bounds))
        # Every part's bound, times r², is raised or lowered to the whole's.
        factors = [
            whole / (b * p.radius) if b > 0 else 0.0
            for p, b in zip(self._pieces, bounds, strict=True)
        ]
        return self._joined(
            [tuple(w * c for w in fit) for fit, c in zip(fits, factors, strict=True)]
        )

    def _over(self, bounds: list[float]) -> float:
        return max(bounds)
