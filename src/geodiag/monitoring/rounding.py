"""What a record says of its rounding errors: below 32 bits of each number, else of a noisy D."""

from __future__ import annotations

import math
from collections.abc import Mapping

from geodiag.blocks import Blocks, add, all_finite, subtract
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
from geodiag.monitoring.realized import NO_DESCENT, NOT_FINITE, ROUNDINGS, TOO_SHORT, Realized
from geodiag.monitoring.step_curvature import AlongStep
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle

AGREE = 0.5  # relative to D: a difference between D and the curvature up to which D is no noise


def point_errors(
    oracle: Oracle, norm: Norm, known: Mapping[str, float], of_sharpness: float | None
) -> tuple[PointErrors | None, str]:
    """The samples of errors at w, and a note on loss, dual norm and S; from 32 bits on neither."""
    eps, gradient = oracle.precision, oracle.gradient()
    if not eps > SINGLE or not bool(all_finite(gradient)):
        return None, ""
    size = float(norm.dual(gradient))
    found = PointErrors(oracle, gradient, losses=True)
    errors = {
        "loss": found.loss() + eps * abs(known.get("loss", math.nan)),
        "dual norm": found.of(lambda e: float(norm.dual(add(gradient, e))) - size) + eps * size,
        "sharpness": math.nan if of_sharpness is None else of_sharpness,
    }
    return found, _note(True, errors)


def smoothness(
    oracle: Oracle,
    here: Blocks,
    there: Blocks,
    losses: tuple[float, float],
    stepped: AlongStep,
    at_point: PointErrors | None,
) -> Realized:
    """D and ζ by the ``losses`` at w⁺ and w, or by gradients where these are lost to rounding.

    From 32 bits on, a D that agrees with the curvature is no noise, and nothing is spent on it.
    """
    length, slope, curvature = (float(stepped.numbers[i]) for i in range(3))
    after, before = losses
    value, notes, errors = per_square(2 * (after - before - slope), length), [], {}
    half = oracle.precision > SINGLE
    differ = not abs(value - curvature) <= AGREE * abs(value)
    if not math.isfinite(value):
        value = math.nan
        notes.append(NOT_FINITE)
    elif is_too_short(there, length):
        value = math.nan
        notes.append(TOO_SHORT)
    elif half or differ:
        found = remainder(oracle, here, there, oracle.gradient(), losses, at_point)
        error = per_square(2 * found.error, length)
        if found.by_gradients:
            value = per_square(2 * found.value, length)
            notes.append(
                "D is from gradients along the step: rounding takes the losses' difference"
            )
        if half or error > NOISE * abs(value):
            errors["D"] = error
    edge, factor = math.nan, length * (length / (-2.0 * slope)) if slope < 0.0 else math.nan
    if math.isnan(factor):
        notes.append(NO_DESCENT)
    else:
        edge = value * factor
        if "D" in errors:
            errors["ζ"] = errors["D"] * factor
        if "D" in errors and at_point is not None:
            of_bend, s = -errors["ζ"] * slope, subtract(there, here)
            errors["ζ"] = edge_error(edge, of_bend, slope, at_point, s, before)
        if math.isinf(errors.get("ζ", 0.0)):
            notes.append(f"ζ: {NO_BOUND}")
    if not math.isfinite(curvature):
        notes.append("the product along the step is not finite")
    elif half:
        errors["curvature"] = curvature_error(oracle, stepped.unit, stepped.image)
    bend, noise = -edge * slope, ROUNDINGS * coarsest(oracle, there) * (abs(after) + abs(before))
    return Realized(
        value,
        edge,
        curvature,
        per_square(-2.0 * slope, length),
        slope,
        after - before - slope if math.isnan(bend) else bend,
        noise,
        (*notes, _note(half, errors)),
    )


def _note(half: bool, errors: Mapping[str, float]) -> str:
    stated = [f"{name} ± {error:.2g}" for name, error in errors.items() if not math.isnan(error)]
    head = "rounding below 32 bits" if half else "rounding"
    return f"{head}: {', '.join(stated)}" if stated else ""
