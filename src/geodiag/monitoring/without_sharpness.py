"""ζ and D of a record without S: from losses, one gradient, at most one product.

A product is taken only where rounding takes the difference of the losses and leaves ζ open: the
curvature along the step is then what is left of both. None is spent where D alone is lost, since ζ
is known to be near 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from geodiag.blocks import Blocks, add, divide, dot, largest, map_blocks, subtract
from geodiag.core.spaces import Space
from geodiag.core.validation import require_flag
from geodiag.directional import is_too_short, per_square
from geodiag.errors import ArgumentError, one_line
from geodiag.estimators.roundoff import (
    NO_BOUND,
    NOISE,
    SINGLE,
    PointErrors,
    coarsest,
    edge_error,
    remainder,
)
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.problems import NormSource, current_norm

ROUNDINGS = 4.0  # of a difference of two losses, in roundings of one
SPREAD = (16.0, 8.0, 6.0)  # of the same, in root mean squares of one, two or three samples
KNOWN = 0.05  # an error of ζ up to which no product is spent
NOT_FINITE = "the loss or the gradient at one end of the step is not finite"
TOO_SHORT = "the step is too short for D: its square underflows"
BELOW = "rounding below 32 bits"
NO_DESCENT = "no ζ: the step does not descend, ⟨∇L, s⟩ is not below 0"


class Realized(NamedTuple):
    """What is known along a step s = w⁺ − w; NaN where there is none."""

    smoothness: float = math.nan  # D
    edge: float = math.nan  # ζ
    curvature: float = math.nan
    descent: float = math.nan  # −2⟨∇L, s⟩/‖s‖²
    slope: float = math.nan  # ⟨∇L, s⟩
    bend: float = math.nan  # L(w⁺) − L(w) − ⟨∇L, s⟩
    noise: float = math.nan  # its rounding error
    notes: tuple[str, ...] = ()


class LossNoise:
    """The rounding error of a run's losses: three samples whenever the loss has halved or doubled.

    A loss of many terms, or one near zero that is a difference of larger numbers, is rounded more
    coarsely than its size tells. A sample is one forward pass, at a point nearly as near as
    rounding, and each is of another record.
    """

    def __init__(self) -> None:
        self._sampled_at = math.nan
        self._errors: list[float] = []

    @classmethod
    def where(cls, sharpness: bool, certificate: bool) -> LossNoise | None:
        """One for a Monitor with ``sharpness=False``, else None.

        Raises:
            ArgumentError: the arguments cannot be used, or not together.
        """
        if require_flag(sharpness, "sharpness="):
            return None
        if certificate:
            raise ArgumentError("certificate=True is of S, which sharpness=False leaves out")
        return cls()

    def difference(self, oracle: Oracle, s: Blocks, losses: tuple[float, float]) -> float:
        """The error of the difference of two losses, as far as it is known."""
        size, known = sum(map(abs, losses)), len(self._errors)
        sampled = SPREAD[known - 1] * math.hypot(*self._errors) / math.sqrt(known) if known else 0.0
        return ROUNDINGS * coarsest(oracle, s) * size + sampled

    def sample(self, oracle: Oracle, here: Blocks, loss: float) -> bool:
        """Sample it, if that is due; whether it was."""
        if not 0.5 * self._sampled_at <= abs(loss) <= 2.0 * self._sampled_at:
            self._sampled_at, self._errors = abs(loss), []
        if len(self._errors) == len(SPREAD):
            return False
        rng = np.random.default_rng(len(self._errors))
        distance = coarsest(oracle, here) ** (4 / 7)
        d = map_blocks(lambda w, z: distance * abs(w) * z, here, oracle.space.random(rng))
        change = float(oracle.loss_at(add(here, d))) - loss - float(dot(oracle.gradient(), d))
        self._errors.append(abs(change) if math.isfinite(change) else 0.0)
        return True


def norm_of_step(source: NormSource | None, space: Space) -> tuple[Norm | None, str]:
    """The norm that D is in; or None, and a note on why there is none."""
    why = "no norm was given"
    if source is not None:
        try:
            return current_norm(source).bind(space), ""
        except Exception as e:
            why = one_line(e)
    return None, f"no D, and no threshold: {why}"


def realized(
    oracle: Oracle,
    norm: Norm | None,
    here: Blocks,
    there: Blocks,
    losses: tuple[float, float],
    rounding: LossNoise,
) -> Realized:
    """Along the step from ``here`` to ``there``, with the ``losses`` at w⁺ and w."""
    s, (after, before) = subtract(there, here), losses
    slope = float(dot(oracle.gradient(), s))
    if not 0.0 < abs(slope) < math.inf:  # else every entry is finite, and one is not zero
        size = float(largest(s))
        if not 0.0 < size < math.inf:
            why = "the step was zero" if size == 0.0 else "the step is not finite"
            return Realized(notes=(why,))
    length = math.nan if norm is None else float(norm.value(s))
    bend, curved = after - before - slope, math.nan
    if not math.isfinite(bend):
        return Realized(slope=slope, notes=(NOT_FINITE,))
    factor = -1.0 / slope if slope < 0.0 else math.nan
    if oracle.precision > SINGLE:
        return _coarse(oracle, norm, (here, there, s), losses, slope)
    notes, noise = [], rounding.difference(oracle, s, losses)

    if not _is_open(noise, bend, factor) and rounding.sample(oracle, here, before):
        noise = rounding.difference(oracle, s, losses)
    if _is_open(noise, bend, factor):
        curved, why = _curved(oracle, s)
        notes.append(why)
    descent = per_square(-2.0 * slope, length)
    apart = abs(bend - 0.5 * curved)
    if noise > NOISE * abs(bend) and not apart <= NOISE * abs(bend):
        by_curvature = apart <= noise
        if apart > noise:  # more than the sample of an error shows
            noise += apart
        errors = {"D": per_square(2.0 * noise, length), "ζ": noise * factor}
        notes.append(note_of(errors, "rounding of the losses"))
        if by_curvature:
            bend = 0.5 * curved
            notes.append("D and ζ are from the curvature along the step instead")
    if not slope < 0.0:
        notes.append(NO_DESCENT)
    smoothness = per_square(2.0 * bend, length)
    if norm is not None and is_too_short(s, length):
        smoothness = math.nan
        notes.append(TOO_SHORT)
    curvature = per_square(curved, length)
    return Realized(smoothness, bend * factor, curvature, descent, slope, bend, noise, tuple(notes))


def _coarse(
    oracle: Oracle,
    norm: Norm | None,
    step: tuple[Blocks, Blocks, Blocks],
    losses: tuple[float, float],
    slope: float,
) -> Realized:
    """The same below 32 bits, where all is rounding but what samples of it show."""
    (here, there, s), gradient = step, oracle.gradient()
    length = math.nan if norm is None else float(norm.value(s))
    samples = PointErrors(oracle, gradient, s, losses=True)
    bend, error, _ = remainder(oracle, here, there, gradient, losses, samples)
    smoothness, descent = per_square(2.0 * bend, length), per_square(-2.0 * slope, length)
    edge, errors, notes = math.nan, {"D": per_square(2.0 * error, length)}, []
    if norm is not None and is_too_short(s, length):
        smoothness = errors["D"] = math.nan
        notes.append(TOO_SHORT)
    if slope < 0.0:
        edge = bend / -slope
        errors["ζ"] = edge_error(edge, error, slope, samples, s, losses[1])
        notes.append(f"ζ: {NO_BOUND}" if math.isinf(errors["ζ"]) else "")
    else:
        notes.append(NO_DESCENT)
    notes.append(note_of(errors, BELOW))
    return Realized(smoothness, edge, math.nan, descent, slope, bend, error, tuple(notes))


def note_of(errors: Mapping[str, float], head: str) -> str:
    """What is stated of errors; NaN: nothing."""
    stated = [f"{name} ± {error:.2g}" for name, error in errors.items() if not math.isnan(error)]
    return f"{head}: {', '.join(stated)}" if stated else ""


def _is_open(noise: float, bend: float, factor: float) -> bool:
    """Whether rounding takes D, and leaves ζ unknown too."""
    return noise > NOISE * abs(bend) and not noise * factor <= KNOWN


def _curved(oracle: Oracle, s: Blocks) -> tuple[float, str]:
    """⟨s, Hs⟩ by one product, or NaN and why."""
    size = float(largest(s))
    try:
        d = divide(s, size)
        found = float(dot(d, oracle.hvp(d))) * size * size
    except Exception as e:
        return math.nan, f"no curvature along the step: {one_line(e)}"
    return found, "" if math.isfinite(found) else "the product along the step is not finite"
