"""The result of a power step, and whether it stands for the measurement."""

from __future__ import annotations

import math

from geodiag.blocks import to_numpy
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles import CountingOracle
from geodiag.results import Bound, Searched, SharpnessResult, Status, WarmStart, relative
from geodiag.solvers.power_step import PowerIterate

# If one power step changes S by more than this, do a second; if S drops by more than this, search.
STEADY, POWER_STEPS = 0.02, 2
# In norms that are not quadratic, S itself has dropped if the second step changes it by at most the
# first of these, and it is lower by at most the second.
CONVERGED, DROP = 0.01, 0.2


def step_result(
    stepped: PowerIterate,
    oracle: CountingOracle,
    norm: Norm,
    loss: float,
    age: int,
    searched: Searched,
) -> SharpnessResult | None:
    """The result of one power step; None if a number is not finite."""
    value, residual, dual_norm = to_numpy(stepped.numbers).tolist()
    # An entry that is not finite makes the sums so, too.
    if not (math.isfinite(value) and math.isfinite(dual_norm)):
        return None
    name = repr(norm)
    return SharpnessResult(
        value=value,
        direction=stepped.direction,
        bound=Bound.LOWER,
        status=Status.COMPLETED,
        norm=name,
        estimator="PowerStep()",
        num_hvps=oracle.num_hvps,
        dual_norm=dual_norm,
        loss=loss,
        residual=None if math.isnan(residual) else relative(residual, value),
        notes=oracle.notes,
        state=WarmStart(stepped.direction, age, name, searched).to_dict(),  # on its device
    )


def is_steady(result: SharpnessResult, last: float, norm: Norm, rtol: float | None) -> bool:
    """Whether no second step is needed."""
    if isinstance(norm, QuadraticNorm):
        return is_accepted(result, last, norm, rtol)
    return abs(result.value - last) <= STEADY * abs(last)


def is_accepted(result: SharpnessResult, last: float, norm: Norm, rtol: float | None) -> bool:
    """Whether the value stands: by its residual, or as it is hardly below the last."""
    if result.value <= 0:
        return False
    if isinstance(norm, QuadraticNorm):
        assert result.residual is not None
        assert rtol is not None
        return result.residual <= rtol
    return result.value >= (1 - STEADY) * last
