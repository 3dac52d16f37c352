"""The round-off of a value, estimated by one independent Hessian-vector product."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from geodiag.blocks import dot
from geodiag.oracles.base import Oracle
from geodiag.results import SharpnessResult, Status, relative

SINGLE = float(np.finfo(np.float32).eps)


def resolved(oracle: Oracle, result: SharpnessResult, rtol: float) -> SharpnessResult:
    """``result`` with a note on its round-off, if that exceeds the relative tolerance ``rtol``.

    It is estimated if the oracle has independent products: in fewer than 32 bits, with jittered
    rounding, and for finite differences in single precision, with another step size. In fewer than
    32 bits it is at least one machine epsilon. A value that had met its tolerance, but is not
    resolved to it, gets the status PRECISION.
    """
    if not math.isfinite(result.value):
        return result
    image = oracle.independent_hvp(result.direction)
    if image is None:
        return result
    noted = [note for note in oracle.notes if note not in result.notes]  # by this product
    result = replace(result, notes=(*result.notes, *noted))
    eps = oracle.precision
    error = abs(float(dot(result.direction, image)) - result.value)
    error = math.inf if math.isnan(error) else error
    half = eps > SINGLE
    error = max(error, eps * abs(result.value)) if half else error
    share = relative(error, result.value)
    fine = share <= rtol
    notes = result.notes if fine and not half else (*result.notes, _note(half, error, share))
    coarse = result.status is Status.CONVERGED and not fine
    return replace(
        result,
        num_hvps=result.num_hvps + 1,
        status=Status.PRECISION if coarse else result.status,
        notes=notes,
    )


def _note(half: bool, error: float, share: float) -> str:
    if half:
        head, cause = "the loss is computed in fewer than 32 bits", "rounding"
    else:
        head, cause = "products are finite differences in single precision", "another step"
    if not share < 1.0:
        return f"{head}, which does not resolve the value: {cause} moves it by {error:.2g}"
    return f"{head}: {cause} moves the value by about {share:.2g} of it"
