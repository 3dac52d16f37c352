"""What the adapters share when they read an optimizer's geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geodiag.core.spaces import Space
from geodiag.norms.base import Norm


class UnknownRule(Exception):
    """Why no threshold applies."""


@dataclass(frozen=True)
class Radii:
    """Radii by exact names."""

    of: tuple[tuple[str, float], ...]

    def __call__(self, name: str, shape: tuple[int, int] | None) -> float:
        return dict(self.of)[name]

    @property
    def __name__(self) -> str:
        return "those of the optimizer"


def equal(a: Norm, b: Norm, space: Space) -> bool:
    """Whether two norms are one, by their duals: these see every tensor, a value may see one."""
    rng = np.random.default_rng(0)
    first, second = a.bind(space), b.bind(space)
    for _ in range(2):
        g = space.random(rng)
        if not np.isclose(float(first.dual(g)), float(second.dual(g)), rtol=1e-4):
            return False
    return True
