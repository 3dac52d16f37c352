"""Small dense algebra over stacks: as in :mod:`geodiag.estimators.stacks`, but on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from geodiag.blocks import Blocks, device, namespace, to_numpy
from geodiag.estimators.stacks import combine, cross

Matrix = np.ndarray[Any, Any]  # small, float64, on the host


def gram(x: Blocks, y: Blocks) -> Matrix:
    """⟨x_i, y_j⟩."""
    return to_numpy(cross(x, y)).astype(np.float64)


def mix(coefficients: Matrix, x: Blocks) -> Blocks:
    """Σ_j c_ij x_j, stacked over i."""
    example = next(iter(x.values()))
    c = namespace(x).asarray(coefficients, dtype=example.dtype, device=device(example))
    return combine(c, x)
