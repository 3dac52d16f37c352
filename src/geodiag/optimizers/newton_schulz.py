"""Muon's orthogonalisation: an odd polynomial of a matrix, near its polar factor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geodiag.blocks import Array, array_namespace, positive

# (a, b, c) of a·x + b·x³ + c·x⁵, five times: Muon's own, in torch.optim and optax.contrib.
MUON_POLYNOMIALS = 5 * ((3.4445, -4.7750, 2.0315),)


def singular_values(polynomials: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The least and the greatest that the polynomials make of singular values of 0.002 to 1.

    >>> low, high = singular_values(MUON_POLYNOMIALS)
    >>> round(low, 2), round(high, 2)
    (0.68, 1.2)
    """
    x = np.geomspace(0.002, 1.0, 2000)
    for a, b, c in polynomials:
        x = a * x + b * x**3 + c * x**5
    return float(x.min()), float(x.max())


def newton_schulz(
    m: Array, polynomials: Sequence[tuple[float, float, float]] = MUON_POLYNOMIALS
) -> Array:
    """The polynomials, one after another, on the singular values of m/‖m‖_F.

    Muon's own take values above 1e-2 to between 0.68 and 1.20.

    Args:
        m: a matrix, or a stack of them on leading axes.
        polynomials: (a, b, c) of each.

    Returns:
        A matrix, or a stack, of the shape of ``m``.

    Examples:
        >>> newton_schulz(np.eye(2)).round(2).tolist()
        [[1.11, 0.0], [0.0, 1.11]]
    """
    xp = array_namespace(m)
    if m.shape[-2] > m.shape[-1]:
        return xp.matrix_transpose(newton_schulz(xp.matrix_transpose(m), polynomials))
    x = m / positive(xp.sqrt(xp.sum(m * m, axis=(-2, -1), keepdims=True)))
    for a, b, c in polynomials:
        s = x @ xp.matrix_transpose(x)
        x = a * x + (b * s + c * (s @ s)) @ x
    return x
