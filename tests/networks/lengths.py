"""Norms by their formulas, with bounds of S that need no search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests import truth

NORMS = tuple(truth.NORMS)
ENUMERATED = 5  # parameters: up to here S in ℓ1 and ℓ∞ is enumerated


@dataclass(frozen=True)
class Length:
    """A norm by its formula; a JAX kernel has its outputs on the last axis."""

    name: str
    transposed: bool = False

    def __call__(self, d: Mapping[str, np.ndarray]) -> float:
        return truth.NORMS[self.name][0]({k: x.T if self.transposed else x for k, x in d.items()})

    def of(self, flat: np.ndarray, shapes: Mapping[str, Any]) -> float:
        """The norm of a vector."""
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
        pieces = zip(shapes.items(), np.split(flat, ends), strict=True)
        return self({k: part.reshape(shape) for (k, shape), part in pieces})

    def exact(self, H: np.ndarray) -> float | None:
        """S in ℓ2, and in small ℓ∞ and ℓ1."""
        if self.name == "l2":
            return float(np.linalg.eigvalsh(H)[-1])
        if len(H) <= ENUMERATED and self.name in ("linf", "l1"):
            return truth.cube_faces(H) if self.name == "linf" else truth.cross_faces(H)
        return None

    def lower(self, H: np.ndarray, shapes: Mapping[str, Any]) -> float:
        """A lower bound of S: the best of eigenvectors, their signs, axes and tensors' own."""
        if (found := self.exact(H)) is not None:
            return found
        n = len(H)
        directions = [*np.eye(n), *np.linalg.eigh(H)[1].T]
        directions += [np.sign(v) for v in directions[n:]]
        start = 0
        for shape in shapes.values():  # eigenvectors of each tensor's own part
            part = slice(start, start + math.prod(shape))
            start = part.stop
            for v in np.linalg.eigh(H[part, part])[1].T:
                directions.append(np.zeros(n))
                directions[-1][part] = v
        return max(float(x @ H @ x) / self.of(x, shapes) ** 2 for x in directions)

    def upper(self, H: np.ndarray, shapes: Mapping[str, Any]) -> float:
        """An upper bound of S > 0: λ_max times the largest ‖d‖₂² in the unit ball."""
        if (found := self.exact(H)) is not None:
            return found
        radius = 1.0
        if self.name not in ("l1", "block", "nuclear"):
            radius = sum(max(shape, default=1) * math.prod(shape) for shape in shapes.values())
        return max(0.0, radius * float(np.linalg.eigvalsh(H)[-1]))
