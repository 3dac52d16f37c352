"""What rounding, or a finite difference, leaves of a value: measured by one product more."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from geodiag.blocks import dot
from geodiag.oracles.base import Oracle
from geodiag.results import SharpnessResult, Status

SINGLE = float(np.finfo(np.float32).eps)


def resolved(oracle: Oracle, result: SharpnessResult, rtol: float) -> SharpnessResult:
    """``result`` with a note on its uncertainty, where that is more than the tolerance.

    It is measured where the oracle knows another way to its products: below 32 bits, where all is
    rounded otherwise, and for finite differences of single precision, with another step. Below 32
    bits it is at least one relative spacing. A value that met its tolerance, though not within
    this, has the status PRECISION.
    """
    if not math.isfinite(result.value):
        return result
    image = oracle.independent_hvp(result.direction)
    if image is None:
        return result
    noted = [note for note in oracle.notes if note not in result.notes]  # while it was asked
    result = replace(result, notes=(*result.notes, *noted))
    eps = oracle.precision
    doubt = abs(float(dot(result.direction, image)) - result.value)
    doubt = math.inf if math.isnan(doubt) else doubt
    half = eps > SINGLE
    doubt = max(doubt, eps * abs(result.value)) if half else doubt
    relative = doubt / abs(result.value) if result.value else math.inf if doubt else 0.0
    fine = relative <= rtol
    notes = result.notes if fine and not half else (*result.notes, _note(half, doubt, relative))
    coarse = result.status is Status.CONVERGED and not fine
    return replace(
        result,
        num_hvps=result.num_hvps + 1,
        status=Status.PRECISION if coarse else result.status,
        notes=notes,
    )


def _note(half: bool, doubt: float, relative: float) -> str:
    if half:
        head, cause = "the loss is computed in fewer than 32 bits", "rounding"
    else:
        head, cause = "products are finite differences in single precision", "another step"
    if not relative < 1.0:
        return f"{head}, which does not resolve the value: {cause} moves it by {doubt:.2g}"
    return f"{head}: {cause} moves the value by about {relative:.2g} of it"
