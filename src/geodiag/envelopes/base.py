"""The contract of an envelope: quadratic forms that stay below a norm's square.

If ⟨d, Pd⟩ ≤ t·‖d‖² for every d and P ≻ 0, then ⟨d, Hd⟩ ≤ λ_max(P^{-1/2} H P^{-1/2})·t·‖d‖² wherever
that eigenvalue is positive: any P of the envelope bounds the sharpness, and a good one bounds it
well. P is written as *weights*, a tuple of arrays in which it is linear. Directions come stacked:
every block has a leading axis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from geodiag.blocks import Array, Blocks

Weights: TypeAlias = tuple[Array, ...]
Map: TypeAlias = Callable[[Blocks], Blocks]


@dataclass(frozen=True)
class Form:
    """A positive definite P with ⟨d, Pd⟩ ≤ ``bound``·‖d‖², as maps of stacked blocks."""

    bound: float
    apply: Map  # X ↦ P X
    solve: Map  # G ↦ P⁻¹ G
    root: Map | None  # Z ↦ F Z for some F with F Fᵀ = P⁻¹; None where there is none at hand


class Envelope(ABC):
    """A convex cone of quadratic forms, each with its bound."""

    # Whether all forms are multiples of one: then there is nothing to choose.
    rigid: bool = False

    @abstractmethod
    def interior(self) -> Weights:
        """Weights of a well-conditioned positive definite form."""

    @abstractmethod
    def bound(self, weights: Weights) -> float:
        """t(P), the least known t with ⟨d, Pd⟩ ≤ t·‖d‖²: convex, and t(cP) = c·t(P) for c ≥ 0."""

    @abstractmethod
    def fit(self, images: Blocks, start: Weights | None = None) -> Weights:
        """The P that (nearly) minimises ⟨G, P⁻¹G⟩ + t(P) for the stacked ``images`` G.

        ``start``: a guess. Any answer is valid; a poor one makes the certificate loose.
        """

    @abstractmethod
    def form(self, weights: Weights) -> Form:
        """The form itself, for weights that make it positive definite."""


def combine(weights: Sequence[Weights], coefficients: Sequence[float]) -> Weights:
    """Σ c_j P_j."""
    pairs = list(zip(weights, coefficients, strict=True))
    return tuple(sum(w[i] * float(c) for w, c in pairs) for i in range(len(weights[0])))
