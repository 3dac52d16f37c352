"""Small dense algebra over stacked blocks: k directions as one value with a leading axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from geodiag.blocks import Array, Blocks, device, map_blocks, namespace, to_numpy

Matrix = np.ndarray[Any, Any]  # small, float64, on the host


def gram(x: Blocks, y: Blocks) -> Matrix:
    """⟨x_i, y_j⟩."""
    xp = namespace(x)
    total: Array = 0.0
    for name in x:
        a, b = (xp.reshape(z[name], (z[name].shape[0], -1)) for z in (x, y))
        total = total + a @ xp.matrix_transpose(b)
    return to_numpy(total).astype(np.float64)


def mix(coefficients: Matrix, x: Blocks) -> Blocks:
    """Σ_j c_ij x_j, stacked over i."""
    xp = namespace(x)

    def mixed(rows: Array) -> Array:
        c = xp.asarray(coefficients, dtype=rows.dtype, device=device(rows))
        flat = c @ xp.reshape(rows, (rows.shape[0], -1))
        return xp.reshape(flat, (flat.shape[0], *rows.shape[1:]))

    return map_blocks(mixed, x)
