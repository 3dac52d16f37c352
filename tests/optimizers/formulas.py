"""lmo(g) and ‖g‖* of the registered norms in NumPy, from their definitions.

Blocks hold vectors, and tensors whose last axis is one side of a matrix: the polar factor and the
singular values are those of either orientation.
"""

from __future__ import annotations

import numpy as np

from tests import truth


def polar(x):
    """UVᵀ of a tensor as a matrix; a vector over its length."""
    if x.ndim < 2:
        return x / truth.l2(x)
    u, _, vt = np.linalg.svd(x.reshape(-1, x.shape[-1]), full_matrices=False)
    return (u @ vt).reshape(x.shape)


def nuclear(x):
    return truth.nuclear(x if x.ndim < 2 else x.reshape(-1, x.shape[-1]))


def l1(g):
    """The largest entry's sign alone."""
    largest = np.abs(truth.flat(g)).max()
    return {n: np.where(np.abs(x) == largest, np.sign(x), 0.0) for n, x in g.items()}


def block(g):
    """The tensor of the largest ℓ2 norm, alone."""
    best = max(g, key=lambda name: truth.l2(g[name]))
    return {n: x / truth.l2(x) if n == best else np.zeros_like(x) for n, x in g.items()}


# name: (lmo, dual norm)
FORMULAS = {
    "l2": (
        lambda g: {n: x / truth.l2(truth.flat(g)) for n, x in g.items()},
        lambda g: truth.l2(truth.flat(g)),
    ),
    "linf": (
        lambda g: {n: np.sign(x) for n, x in g.items()},
        lambda g: np.abs(truth.flat(g)).sum(),
    ),
    "l1": (l1, lambda g: np.abs(truth.flat(g)).max()),
    "spectral": (
        lambda g: {n: polar(x) for n, x in g.items()},
        lambda g: sum(nuclear(x) for x in g.values()),
    ),
    "block": (block, lambda g: max(truth.l2(x) for x in g.values())),
}
# Of (out, in) matrices.
MUON = (
    lambda g: {n: truth.muon_radius(x) * polar(x) for n, x in g.items()},
    lambda g: sum(truth.muon_radius(x) * nuclear(x) for x in g.values()),
)
