"""Muon's norm: spectral, with a radius for each matrix that depends on its shape."""

from __future__ import annotations

import math
from typing import ClassVar

from geodiag.core.spaces import Space
from geodiag.errors import ArgumentError, NormError, shown
from geodiag.norms.base import Norm
from geodiag.norms.composite import RadiusFunction
from geodiag.norms.matrix import Spectral


def muon_radius(rows: int, cols: int, rms: float | None = None) -> float:
    """The factor r of Muon's step −η·r·UVᵀ for a matrix of ``rows`` outputs and ``cols`` inputs.

    Without ``rms`` it is √max(1, rows/cols), the original's. With it, it is rms·√max(rows, cols):
    the entries of r·UVᵀ then have this root mean square (arXiv 2502.16982, with rms = 0.2).

    >>> muon_radius(8, 2), muon_radius(8, 2, rms=0.5) == 0.5 * 8**0.5
    (2.0, True)
    """
    if rms is None:
        return math.sqrt(max(1.0, rows / max(1, cols)))
    return rms * math.sqrt(max(rows, cols))


# ``adjust_lr_fn`` of torch.optim.Muon → ``rms`` of muon_radius.
MUON_RMS: dict[str, float | None] = {"original": None, "match_rms_adamw": 0.2}


def _original(name: str, shape: tuple[int, int] | None) -> float:
    return 1.0 if shape is None else muon_radius(*shape, MUON_RMS["original"])


def _match_rms_adamw(name: str, shape: tuple[int, int] | None) -> float:
    return 1.0 if shape is None else muon_radius(*shape, MUON_RMS["match_rms_adamw"])


class Muon(Spectral):
    """The spectral norm with the radii by which Muon scales its steps; see :func:`muon_radius`.

    Args:
        adjust: ``"original"`` or ``"match_rms_adamw"``, as in torch.optim.Muon. Rows are outputs.

    Raises:
        ArgumentError: another ``adjust``.
        NormError: when bound to parameters of which none is a matrix.

    Examples:
        >>> shapes = {"W": (2, 2)}
        >>> round(float(geodiag.sharpness(np.eye(4), Muon(), shapes=shapes)), 6)
        2.0
    """

    rules: ClassVar[dict[str, RadiusFunction]] = {
        "original": _original,
        "match_rms_adamw": _match_rms_adamw,
    }

    def __init__(self, adjust: str = "original") -> None:
        if not isinstance(adjust, str) or adjust not in self.rules:
            raise ArgumentError(
                "unknown radius rule for Muon", got=shown(adjust), do=f"use one of {[*self.rules]}"
            )
        super().__init__(self.rules[adjust])
        self.adjust = adjust

    def bind(self, space: Space) -> Norm:
        if not any(name in space.matrix_view for name in space.names):
            raise NormError(
                "the muon norm needs at least one matrix among the measured parameters",
                got=", ".join(f"{n}: {s}" for n, s in list(space.shapes.items())[:6]),
                do="measure the matrices, or use 'l2' or 'linf' for vectors",
            )
        return super().bind(space)

    def __repr__(self) -> str:
        return f"Muon({self.adjust!r})"
