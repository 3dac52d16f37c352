"""Both bounds within one budget: a witness, then a certificate, then an ascent from its starts."""

from __future__ import annotations

from dataclasses import replace

from geodiag.blocks import Blocks
from geodiag.certificates.certificate import certify
from geodiag.errors import ArgumentError
from geodiag.estimators.ascent import Ascent
from geodiag.estimators.base import Measurement, Options, SharpnessEstimator
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles.wrappers import CountingOracle
from geodiag.results import SharpnessResult, Status

TOTAL = 250  # products, unless max_hvps says otherwise
WITNESS = 10  # of these, for the witness
CLIMB = 8  # and for the ascent from the starts that the certificate found; the rest certifies
LEAST = 12


def bracket(
    estimator: SharpnessEstimator,
    oracle: CountingOracle,
    norm: Norm,
    start: Blocks | None,
    options: Options,
) -> SharpnessResult:
    """The estimator's result with ``upper``.

    Raises:
        ArgumentError: ``max_hvps`` below 12.
        NormError: the norm declares no envelope.
    """
    total = options.max_hvps or TOTAL
    if total < LEAST:
        raise ArgumentError(
            f"certificate=True takes at least {LEAST} products", got=f"max_hvps={total}"
        )
    given, quadratic = options.max_hvps is not None, isinstance(norm, QuadraticNorm)
    own = total // 2 if quadratic else max(2, min(WITNESS, total // 3))
    limited = given or (isinstance(estimator, Ascent) and not oracle.free_hvps)
    asked = replace(options, max_hvps=own) if limited else options
    result = estimator.estimate(oracle, norm, start, asked)
    if result.status is Status.ENUMERATED:
        return replace(result, upper=result.value)
    climb = 0 if quadratic else min(CLIMB, total // 6)
    rest = total - oracle.num_hvps - climb if limited else total
    found = certify(oracle, norm, result.direction, max_hvps=max(4, rest), seed=options.seed)
    if climb and found.starts:
        m = Measurement(oracle, norm, estimator, options)
        climbed = Ascent().climb(m, found.starts, climb)
        if climbed.value > result.value:
            better = climbed.finish(m)
            result = better if better.value > result.value else result
    return replace(
        result,
        upper=max(found.upper, result.value),  # they may cross by rounding
        num_hvps=oracle.num_hvps,
        notes=result.notes + found.notes,
    )
