"""What fewer than 32 bits leave of a value: measured by one product more, all rounded otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from geodiag.blocks import Blocks, dot, map_blocks, namespace, scale
from geodiag.oracles.base import Oracle
from geodiag.results import SharpnessResult, Status

SINGLE = float(np.finfo(np.float32).eps)
# The direction's largest entry in the product more: no power of two, which would round alike, and
# of order one, where small numbers do not vanish.
PEAK = 1.37


def resolved(oracle: Oracle, result: SharpnessResult, rtol: float) -> SharpnessResult:
    """``result`` with a note on its uncertainty, where the loss is computed in fewer than 32 bits.

    The uncertainty is how far ⟨d, Hd⟩ moves with the parameters shaken by half a relative spacing
    of the coarsest numbers and the direction rescaled, so that nothing rounds as before; and at
    least one spacing of the value. A value that met its tolerance, though not within this, has the
    status PRECISION.
    """
    eps = oracle.precision
    if not eps > SINGLE or not math.isfinite(result.value):
        return result
    doubt = abs(_shaken(oracle, result.direction, eps) - result.value)
    doubt = max(doubt if math.isfinite(doubt) else math.inf, eps * abs(result.value))
    relative = doubt / abs(result.value) if result.value else math.inf
    coarse = result.status is Status.CONVERGED and not relative <= rtol
    return replace(
        result,
        num_hvps=result.num_hvps + 1,
        status=Status.PRECISION if coarse else result.status,
        notes=(*result.notes, _note(eps, doubt, relative)),
    )


def _shaken(oracle: Oracle, d: Blocks, eps: float) -> float:
    noise = oracle.space.random(np.random.default_rng(0))
    shaken = map_blocks(lambda w, z: w * (1 + 0.5 * eps * z), oracle.point(), noise)
    xp = namespace(d)
    c = PEAK / max(float(xp.max(xp.abs(x))) for x in d.values() if 0 not in x.shape)
    there = oracle.moved(shaken) or oracle
    return float(dot(d, there.hvp(scale(d, c)))) / c


def _note(eps: float, doubt: float, relative: float) -> str:
    head = f"the loss is computed to a relative {eps:.1g} (fewer than 32 bits)"
    if not relative < 1.0:
        return f"{head}, which does not resolve the value: rounding moves it by {doubt:.2g}"
    return f"{head}: rounding moves the value by about {relative:.1%}"
