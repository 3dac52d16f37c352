"""Is a value that is returned for a small matrix right? By eigenvalues, faces, and the witness.

A direction of unit norm with ⟨d, Hd⟩ = value proves that the value is not above S, in any norm; for
ℓ2, ℓ∞ and ℓ1 the maximum itself is known, by a dense eigenvalue or all faces of the ball.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import geodiag
from geodiag import norms
from geodiag.problems import as_norm
from tests import truth

# The rounding of sums over at most 5 entries, of singular values and of a division by the length;
# float32 witnesses are off by a few of its epsilons, 1e-7.
WITNESS = {"float64": 1e-10, "float32": 2e-5}


def check_sharpness(model: Any, asked: Any, result: Any, shapes: Any = None) -> None:
    """Raise AssertionError where the result of a measurement of the matrix ``model`` is wrong."""
    if result.status.failed:
        assert math.isnan(result.value)
        return
    norm = as_norm(asked)
    H = np.asarray(model)
    single = H.dtype == np.float32
    H = H.astype(np.float64)
    tolerance = WITNESS["float32" if single else "float64"]
    d = truth.flat(truth.back(result.direction))
    assert np.all(np.isfinite(d))
    with np.errstate(all="ignore"):
        length = _length(norm, result.direction, model, shapes)
        # Relative to the terms of ⟨d, Hd⟩, which may cancel; what underflows is lost.
        size = float(np.abs(d) @ np.abs(H) @ np.abs(d))
        lost = 100 * float(np.finfo("float32" if single else "float64").tiny)
        peak = np.abs(d).max()
        lost = float(lost * (1 + peak * peak))
        # Each entry is off by half the smallest number, where it is subnormal.
        off = tolerance + len(d) * (1e-45 if single else 5e-324) / max(peak, 1e-323)
        slack = tolerance * size + lost
        attained = float(d @ H @ d)
        top = _maximum(H, norm)
    assert math.isfinite(result.value)
    assert abs(length - 1) <= off, f"‖d‖ = {length}"
    assert abs(result.value - attained) <= slack, f"{result.value} where d attains {attained}"
    if top is None:
        return
    scale = tolerance * len(H) * float(np.abs(H).sum()) + lost
    assert result.value <= top + scale, f"{result.value} above the maximum {top}"
    if result.upper is not None:
        assert result.upper >= top - scale, f"upper {result.upper} below the maximum {top}"
    if result.bound is geodiag.Bound.EXACT:
        off = (result.residual or 0.0) * abs(result.value)
        assert result.value >= top - off - scale, f"EXACT {result.value} below the maximum {top}"


def _length(norm: Any, direction: Any, model: Any, shapes: Any) -> float:
    """‖direction‖, by the formula where the norm has one in :mod:`tests.truth`."""
    host = truth.back(direction)
    flat = all(x.ndim < 3 and x.size for x in host.values())
    if repr(norm) in NAMED and flat:
        return float(NAMED[repr(norm)](host))
    return float(norm.bind(geodiag.problem(model, shapes=shapes).space).value(direction))


def _maximum(H: Any, norm: Any) -> float | None:
    """S, where it is known by other means; None elsewhere."""
    peak = float(np.abs(H).max())
    if not 1e-100 < peak < 1e100 or len(H) > 5:  # the formulas themselves over- or underflow
        return 0.0 if peak == 0 else None
    unit = H / peak
    if isinstance(norm, norms.L2):
        return float(np.linalg.eigvalsh(unit)[-1]) * peak
    if isinstance(norm, norms.Linf):
        return truth.cube_faces(unit) * peak
    if isinstance(norm, norms.L1):
        return truth.cross_faces(unit) * peak
    return None


NAMED = {repr(as_norm(name)): value for name, (value, _) in truth.NORMS.items()}
