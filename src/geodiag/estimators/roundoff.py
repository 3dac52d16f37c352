"""How far rounding may have moved what was measured.

resolved          a sharpness, by one independent Hessian-vector product
curvature_error   ⟨s, Hs⟩, by the same below 32 bits, else by the size of its terms
PointErrors       loss and gradient, by differences at distances where these are rounding
remainder         L(w + s) − L(w) − ⟨∇L(w), s⟩, by losses or by gradients

That of a remainder held in all random draws of networks and steps (``python -m tests.rounding``),
the others in at least 95 %; but from 32 bits on that of the curvature is too small where a
cross-entropy has been fitted to near zero.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    add,
    axpy,
    dot,
    epsilon,
    map_blocks,
    namespace,
    norm2,
    scale,
    subtract,
)
from geodiag.oracles.base import Oracle
from geodiag.results import Bound, SharpnessResult, Status, relative

NO_BOUND = "its error has no bound: rounding may take all of ⟨∇L, s⟩ or of the loss"
SINGLE = float(np.finfo(np.float32).eps)
SAMPLES = 2
# At so many root mean squares of the samples lie 95 % of what they are samples of, or more.
SPREAD = 5.0
NOISE = 0.5  # relative: a larger error leaves little of a remainder
# Of a remainder, on the errors of the losses at w and on the change by other rules. Below 32 bits
# the errors of gradients along a step are correlated, and smaller than the samples at w.
LOSSES, RULE, CORRELATED = 1.5, 4.0, 0.3
# Of a slope: to the samples of its error, and to the rounding of each entry of the gradient, which
# samples miss where it is the same at all points near w.
SAMPLED, ENTRIES = 2.0, 0.75
# The share of a loss that may be its own error, from which on nothing is known of its gradient:
# what is rounded to a bound, as a saturated activation, errs alike at all points near w.
UNKNOWN = 0.15
# Of a curvature: an independent product shows one error of its kind, and the terms their size.
INDEPENDENT, TERMS = 6.0, 8.0
# How far half a step may move a difference that stands for a second derivative: far above what
# rounding makes, and below the 0.29 of a slope that grows as the root of the distance.
SETTLED = 0.15
ONE_PRODUCT = 3.0  # of a sharpness, where one machine epsilon is the least


def resolved(oracle: Oracle, result: SharpnessResult, rtol: float) -> SharpnessResult:
    """``result`` with a note on its round-off, if that exceeds the relative tolerance ``rtol``.

    It is estimated if the oracle has independent products: in fewer than 32 bits, with jittered
    rounding, and for finite differences, with another step size, which shows jumps of the gradient
    too. In fewer than 32 bits it is at least one machine epsilon. A value that had met its
    tolerance, but is not resolved to it, gets the status PRECISION. Of a loss that is not steady
    no value is EXACT.
    """
    if not oracle.steady:
        result = replace(result, bound=Bound.LOWER)
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
    if share > SETTLED and not half:  # no second derivative: the value is no maximum of anything
        coarse, result = True, replace(result, bound=Bound.LOWER)
    return replace(
        result,
        num_hvps=result.num_hvps + 1,
        rounding=ONE_PRODUCT * error,
        status=Status.PRECISION if coarse else result.status,
        notes=notes,
    )


def _note(half: bool, error: float, share: float) -> str:
    if half:
        head, cause = "the loss is computed in fewer than 32 bits", "rounding"
    else:
        head, cause = "products are finite differences", "another step"
    if not share < 1.0:
        return f"{head}, which does not resolve the value: {cause} moves it by {error:.2g}"
    return f"{head}: {cause} moves the value by about {share:.2g} of it"


def coarsest(oracle: Oracle, blocks: Blocks) -> float:
    """The machine epsilon of the coarsest dtype that anything is computed in."""
    return max(epsilon(blocks), oracle.precision)


def curvature_error(oracle: Oracle, s: Blocks, image: Blocks) -> float:
    """Of ⟨s, Hs⟩, where ``image`` is Hs; below 32 bits it takes one product."""
    terms = TERMS * coarsest(oracle, s) * float(norm2(s)) * float(norm2(image))
    other = oracle.independent_hvp(s) if oracle.precision > SINGLE else None
    if other is None:
        return terms
    return terms / 4 + INDEPENDENT * abs(float(dot(s, subtract(other, image))))


class PointErrors:
    """Samples of the errors of loss and gradient, at w and at points as near as ``reach``.

    They are differences at relative distances of ε^{4/7}, or ε^{2/3} below 32 bits, of an order at
    which those of a smooth loss are below rounding; and what is rounded to steps, as 1 − p near a
    probability of 1, takes many of them. Each sample takes two gradients, and with ``losses`` two
    losses.
    """

    def __init__(
        self,
        oracle: Oracle,
        gradient: Blocks,
        reach: Blocks | None = None,
        *,
        losses: bool = False,
    ) -> None:
        here, rng = oracle.point(), np.random.default_rng(0)
        half = self._half = oracle.precision > SINGLE
        distance = coarsest(oracle, here) ** (2 / 3 if half else 4 / 7)
        sizes = map_blocks(abs, here) if reach is None else map_blocks(_sizes, here, reach)
        self._gradients, self._losses = [], []
        for _ in range(SAMPLES):
            d = map_blocks(lambda x, z: distance * x * z, sizes, oracle.space.random(rng))
            above, below = add(here, d), subtract(here, d)
            both, slopes = _at_ends(oracle, (above, below), d)
            # n₊ + n₋ − 2n: six times the variance of one error.
            self._gradients.append(scale(axpy(-2.0, gradient, both), 1 / math.sqrt(6)))
            del both  # a vector less while the losses are computed
            if losses:  # by the trapezoidal rule: twice, and six times the variance
                up, down, loss = map(float, (*map(oracle.loss_at, (above, below)), oracle.loss()))
                self._losses.append((up - down - sum(slopes)) / math.sqrt(2))
                bend = 0.5 * (slopes[0] - slopes[1])
                self._losses.append((up + down - 2 * loss - bend) / math.sqrt(6))

    def loss(self) -> float:
        """The error of a loss."""
        return _spread(self._losses)

    def lost(self, loss: float) -> float:
        """The share of a loss that its error may be; as large a share of the gradient is lost.

        0 from 32 bits on, where a loss may be 0 by itself: below them one of 0 has underflowed.
        """
        error = self.loss()
        return error / (abs(loss) + error) if loss and self._half else float(self._half)

    def of(self, number: Callable[[Blocks], float]) -> float:
        """The error of a number, given what an error of the gradient adds to it."""
        return _spread(map(number, self._gradients))

    def along(self, s: Blocks) -> float:
        """The error of ⟨∇L, s⟩."""
        return self.of(lambda e: float(dot(e, s)))


def _sizes(x: Array, y: Array) -> Array:
    return abs(x) + abs(y)


def _at_ends(oracle: Oracle, ends: tuple[Blocks, Blocks], d: Blocks) -> tuple[Blocks, list[float]]:
    """The sum of the gradients at two points, and the slope of each along d."""
    gradients = [oracle.gradient_at(w) for w in ends]
    return add(*gradients), [float(dot(g, d)) for g in gradients]


def _spread(samples: Iterable[float]) -> float:
    known = list(samples)
    found = SPREAD * math.hypot(*known) / math.sqrt(len(known)) if known else 0.0
    return found if math.isfinite(found) else math.inf


def edge_error(
    edge: float, error: float, slope: float, errors: PointErrors, s: Blocks, loss: float
) -> float:
    """Of ζ = remainder/−slope, by the remainder's ``error``; infinite where the slope is lost."""
    doubt = SAMPLED * errors.along(s) + min(1.0, (errors.lost(loss) / UNKNOWN) ** 2) * -slope
    return (error + abs(edge) * doubt) / (-slope - doubt) if doubt < -slope else math.inf


def _is_rounded(s: Blocks, w: Blocks, eps: float) -> bool:
    """Whether a step has entries that are lost where the weights are cast to fewer bits."""
    xp = namespace(s)
    lost = (xp.any((s[n] != 0) & (abs(s[n]) < 0.25 * eps * abs(w[n]))) for n in s)
    return any(map(bool, lost))


class Remainder(NamedTuple):
    """L(w⁺) − L(w) − ⟨∇L(w), s⟩ along s = w⁺ − w."""

    value: float
    error: float
    by_gradients: bool  # whether the value is the integral


def remainder(
    oracle: Oracle,
    here: Blocks,
    there: Blocks,
    gradient: Blocks,
    losses: tuple[float, float],
    errors: PointErrors | None = None,
) -> Remainder:
    """The remainder with its error, by the ``losses`` at w⁺ and w or by gradients between.

    It is the integral of ⟨∇L(w + ts) − ∇L(w), s⟩ too, which loses no digits to the size of the
    loss. By Simpson's rule that takes two gradients. The two differ by the rounding of the losses
    and the error of the rule, kinks included; the latter shows in what the trapezoidal rule and one
    with a third gradient make of it. As two numbers may agree by chance, samples of the errors at w
    add to both bounds: without the ``errors`` there it takes four gradients and four losses more.
    Where rounding leaves little of the difference of the losses, the value is the integral; if the
    loss is lost in its own error, so may be its gradient.
    """
    s = subtract(there, here)
    after, before = losses
    by_losses = after - before - float(dot(gradient, s))
    quarter, middle, end = (
        float(dot(subtract(oracle.gradient_at(w), gradient), s))
        for w in (axpy(0.25, s, here), axpy(0.5, s, here), there)
    )
    integral, third = (4 * middle + end) / 6, (16 * quarter + 5 * end) / 18
    errors = errors or PointErrors(oracle, gradient, s, losses=True)
    # Below 32 bits the points between may be rounded to one end, and gradients stay as they are.
    along, half = errors.along(s), oracle.precision > SINGLE
    seen = half and 0.0 not in (quarter, middle)
    seen = seen and (abs(end) > along or not _is_rounded(s, here, oracle.precision))
    lost = errors.lost(before)
    if lost == 1.0:
        return Remainder(by_losses, math.inf, False)
    slope = (CORRELATED if seen else 1.0) * along
    slope += abs(float(dot(gradient, s))) if lost > NOISE else 0.0
    eps, of_loss = coarsest(oracle, s), max(errors.loss(), lost * abs(after))
    error = abs(by_losses - integral) + slope + LOSSES * of_loss
    error += eps * (abs(before) + abs(after))
    rule = max(abs(end / 2 - integral), abs(third - integral))
    other = RULE * (rule + abs(integral) * lost**1.5) + slope
    other += ENTRIES * eps * float(norm2(map_blocks(operator.mul, gradient, s)))
    if error > NOISE * abs(by_losses) and other < error:
        return Remainder(integral, other, True)
    return Remainder(by_losses, error if math.isfinite(error) else math.inf, False)
