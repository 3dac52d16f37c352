"""What a record says of its rounding errors: below 32 bits of each number, else of a noisy D."""

from __future__ import annotations

import math
from collections.abc import Mapping

from geodiag.blocks import Blocks, add, all_finite, dot, subtract
from geodiag.directional import is_too_short, per_square
from geodiag.estimators.roundoff import (
    NO_BOUND,
    NOISE,
    SINGLE,
    PointErrors,
    coarsest,
    curvature_error,
    edge_error,
    remainder,
)
from geodiag.monitoring.step_curvature import AlongStep
from geodiag.monitoring.without_sharpness import (
    BELOW,
    NO_DESCENT,
    NOT_FINITE,
    ROUNDINGS,
    TOO_SHORT,
    Realized,
    note_of,
)
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle

AGREE = 0.5  # relative to D: a difference between D and the curvature up to which D is no noise


def note_at_point(
    oracle: Oracle, norm: Norm, known: Mapping[str, float], of_sharpness: float | None
) -> str:
    """A note on the errors of loss, dual norm and S; "" from 32 bits on."""
    eps, gradient = oracle.precision, oracle.gradient()
    if not eps > SINGLE or not bool(all_finite(gradient)):
        return ""
    size = float(norm.dual(gradient))
    found = PointErrors(oracle, gradient, losses=True)
    errors = {
        "loss": found.loss() + eps * abs(known.get("loss", math.nan)),
        "dual norm": found.of(lambda e: float(norm.dual(add(gradient, e))) - size) + eps * size,
        "sharpness": math.nan if of_sharpness is None else of_sharpness,
    }
    return note_of(errors, BELOW)


def smoothness(
    oracle: Oracle,
    exact: Oracle,
    here: Blocks,
    there: Blocks,
    losses: tuple[float, float],
    stepped: AlongStep,
) -> Realized:
    """D and ζ by the ``losses`` at w⁺ and w, or by gradients where these are lost to rounding.

    From 32 bits on, a D that agrees with the curvature is no noise, and nothing is spent on it.
    ``exact``: what the losses are of, the ``oracle`` itself or its loss in float32.
    """
    s, gradient = subtract(there, here), exact.gradient()
    length, slope, curvature = (float(stepped.numbers[i]) for i in range(3))
    coarse, half = exact.precision > SINGLE, oracle.precision > SINGLE
    if exact is not oracle:
        slope = float(dot(gradient, s))
    after, before = losses
    value, notes = per_square(2 * (after - before - slope), length), []
    factor = length * (length / (-2.0 * slope)) if slope < 0.0 else math.nan
    errors: dict[str, float] = {}
    differ = not abs(value - curvature) <= AGREE * abs(value)
    if not math.isfinite(value):
        value = math.nan
        notes.append(NOT_FINITE)
    elif is_too_short(there, length):
        value = math.nan
        notes.append(TOO_SHORT)
    elif coarse or differ:
        at_ends = PointErrors(exact, gradient, s, losses=True)
        found = remainder(exact, here, there, gradient, losses, at_ends)
        error = per_square(2 * found.error, length)
        if found.by_gradients:
            value = per_square(2 * found.value, length)
            notes.append(
                "D is from gradients along the step: rounding takes the losses' difference"
            )
        if coarse or error > NOISE * abs(value):
            errors["D"] = error
        if slope < 0.0:
            error = edge_error(value * factor, found.error, slope, at_ends, s, before)
            if coarse or error > NOISE * abs(value * factor):
                errors["ζ"] = error
            if math.isinf(error):
                notes.append(f"ζ: {NO_BOUND}")
    edge = value * factor
    if math.isnan(factor):
        notes.append(NO_DESCENT)
    if not math.isfinite(curvature):
        notes.append("the product along the step is not finite")
    elif half:
        errors["curvature"] = curvature_error(oracle, stepped.unit, stepped.image)
    bend, noise = -edge * slope, ROUNDINGS * coarsest(exact, there) * (abs(after) + abs(before))
    return Realized(
        value,
        edge,
        curvature,
        per_square(-2.0 * slope, length),
        slope,
        after - before - slope if math.isnan(bend) else bend,
        noise,
        (*notes, note_of(errors, BELOW if half else "rounding")),
    )
