"""What rounding may change in a loss of some precision, see :mod:`geodiag_jax.inspection`."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from geodiag.errors import DataError, EngineError
from geodiag_jax.derivatives import Arrays

SINGLE = float(np.finfo(np.float32).eps)


def require_float32(eps: float) -> float:
    """``eps``; EngineError where it is too large for finite differences of gradients."""
    if eps > SINGLE:
        raise EngineError(
            "finite differences need a loss that is computed in at least 32 bits",
            got=f"a relative precision of {eps:.1g} from parameters to loss",
            do="convert the parameters to float32, or leave out the casts in the loss",
        )
    return eps


def check_same_loss(
    frozen: float, found: float, slope: float, length: float, curved: float, eps: float
) -> None:
    """Compare the losses of two passes at the same parameters.

    Two compiled programs may round differently: by a relative 0.3·√ε of the loss (1e-4 in float32,
    4e-9 in float64) at most, or, where the loss nearly cancels or vanishes, by as much as a change
    of the parameters by δ = 1000·ε‖w‖ changes it: ``slope`` is ‖∇L‖, ``length`` is ‖w‖ and
    ``curved`` is |⟨d, ∇²L d⟩|/‖d‖² in some direction. Other batches change it by far more.
    """
    delta = 1e3 * eps * length
    allowed = 0.3 * math.sqrt(eps) * abs(frozen) + delta * slope + delta**2 * curved
    if math.isfinite(frozen) and math.isfinite(found) and abs(found - frozen) > allowed:
        raise DataError(
            "the data changed between passes: the loss at the same parameters differs",
            got=f"{frozen!r}, then {found!r}",
            do="pass a list of batches, or a loader with a fixed order, no random "
            "augmentation and no dropped examples",
        )


def curvature(d: Arrays, product: Arrays) -> float:
    """|⟨d, Hd⟩|/‖d‖², and zero for d = 0."""
    along = sum(float(jnp.vdot(x, y)) for x, y in zip(d, product, strict=True))
    length2 = sum(float(jnp.vdot(x, x)) for x in d)
    return abs(along) / length2 if length2 else 0.0
