"""The realized edge ζ of a step: how near a step of any optimizer came to not lowering the loss.

Along s = w⁺ − w, with g = ∇L(w),

    ζ = 1 + (L(w⁺) − L(w))/(−⟨g, s⟩) = D‖s‖²/(−2⟨g, s⟩)       arXiv 2608.18415

where ⟨g, s⟩ < 0. The loss falls for ζ < 1, the step is neutral at ζ = 1. For descent in any norm
ζ = ηD/2. It needs no norm, no threshold and no Hessian-vector product. Where there are both,

    ζ = (S/threshold) · occupation / timing       on a quadratic
    occupation = ⟨s, Hs⟩/(S‖s‖²)                  how much of the step is along the sharp direction
    timing = −2⟨g, s⟩/(threshold·‖s‖²)            how far it still points where the gradient points
"""

from __future__ import annotations

import math
from typing import Any

from geodiag.blocks import Blocks, add, dot, largest, subtract
from geodiag.core.display import pairs, titled
from geodiag.core.validation import as_number, as_step, own_arithmetic
from geodiag.directional import LOST
from geodiag.errors import ArgumentError, NonFiniteError, shown
from geodiag.estimators.roundoff import NO_BOUND, PointErrors, edge_error, remainder
from geodiag.norms.base import Norm
from geodiag.optimizers.thresholds import Threshold
from geodiag.optimizers.thresholds import threshold as threshold_of
from geodiag.oracles import Oracle
from geodiag.problems import as_norm, resolved_oracle
from geodiag.sharpness import sharpness


class RealizedEdge(float):
    """A realized edge ζ: a float with its parts.

    Attributes:
        occupation: ⟨s, Hs⟩/(S‖s‖²); NaN where no norm was given.
        timing: −2⟨g, s⟩/(threshold·‖s‖²); NaN where no norm or no threshold was given.
        rounding: how far rounding may have moved ζ; in all random steps that were drawn no further.
            Infinite where it may leave nothing of ⟨g, s⟩.
        loss: L(w).
        new_loss: L(w⁺).
        note: why the value is NaN, or its rounding infinite; else "".

    Examples:
        >>> step = {"x": np.array([-0.25])}
        >>> pair = (lambda w: 2 * float(w["x"] @ w["x"]), lambda w: {"x": 4 * w["x"]})
        >>> edge = geodiag.realized_edge(pair, step, params={"x": np.ones(1)})
        >>> float(edge), edge.loss, edge.new_loss
        (0.125, 2.0, 1.125)
    """

    occupation: float
    timing: float
    rounding: float
    loss: float
    new_loss: float
    note: str

    def __new__(cls, value: float, **parts: Any) -> RealizedEdge:
        self = super().__new__(cls, value)
        for name, part in parts.items():
            setattr(self, name, part)
        return self

    def __reduce__(self) -> Any:
        return _restored, (float(self), dict(vars(self)))

    def _repr_html_(self) -> str:
        rows = [
            (name.replace("_", " "), getattr(self, name))
            for name in ("rounding", "occupation", "timing", "loss", "new_loss")
        ]
        return pairs(titled("Realized edge ζ:", self), rows, [self.note])

    def __repr__(self) -> str:
        error = f"rounding=±{self.rounding:.1g}" if not self.note else self.note
        return f"RealizedEdge({float(self):.6g}, {error})"


def _restored(value: float, parts: dict[str, Any]) -> RealizedEdge:
    return RealizedEdge(value, **parts)


def realized_edge(
    model: Any,
    step: Blocks,
    norm: Norm | str | None = None,
    *,
    lr: float | None = None,
    threshold: float | None = None,
    **problem_arguments: Any,
) -> RealizedEdge:
    """The realized edge ζ of ``step`` = w⁺ − w from the model's current point w.

    It takes two losses and a gradient, and seven gradients and four losses more for ``rounding``.
    A loss of fewer than 32 bits is computed in float32, see :meth:`geodiag.Oracle.in_float32`.

    Args:
        model: as in :func:`geodiag.sharpness`.
        step: blocks of w⁺ − w, with the measured parameters' names and shapes: of any optimizer, on
            any batch.
        norm: also measure S in this norm, for ``occupation`` and ``timing``.
        lr: with ``norm``, the learning rate of plain descent, whose threshold is 2/lr.
        threshold: with ``norm``, the threshold of another update: :func:`geodiag.threshold`.
        **problem_arguments: as in :func:`geodiag.problem`.

    Returns:
        RealizedEdge: a float without a unit, with its parts; NaN, with the reason in ``note``,
        where the step does not descend.

    Raises:
        ShapeError: ``step`` has other names or shapes than the parameters.
        ArgumentError: a step that is zero, not finite or lost to rounding, or an argument out of
            its range.
        NonFiniteError: the loss or the gradient at one end of the step is not finite.

    Examples:
        Descent on a quadratic along its sharpest direction: ζ = ηλ/2, all of it occupied.

        >>> H, step = np.diag([4.0, 1.0]), {"x": np.array([-0.4, 0.0])}
        >>> pair = (lambda w: w["x"] @ H @ w["x"] / 2, lambda w: {"x": H @ w["x"]})
        >>> at = {"x": np.array([1.0, 0.0])}
        >>> edge = geodiag.realized_edge(pair, step, "l2", lr=0.1, params=at)
        >>> [round(x, 6) for x in (edge, edge.occupation, edge.timing)]
        [0.2, 1.0, 1.0]
    """
    limit = _limit(norm, lr, threshold)
    with (
        resolved_oracle(model, **problem_arguments) as oracle,
        oracle.surroundings(),
        own_arithmetic(),
    ):
        s = as_step(step, oracle.space)
        here = oracle.point()
        there = add(here, s)
        taken = subtract(there, here)  # as it is after rounding
        given, oracle = oracle, oracle.in_float32() or oracle
        if not bool(largest(taken) > 0):
            raise ArgumentError(LOST, do="measure a longer step, or in float64")
        gradient, slope = oracle.gradient(), float(dot(oracle.gradient(), taken))
        losses = float(oracle.loss_at(there)), float(oracle.loss())
        parts: dict[str, Any] = {"loss": losses[1], "new_loss": losses[0], "note": ""}
        if not all(map(math.isfinite, (*losses, slope))):
            raise NonFiniteError(
                "the loss or the gradient at one end of the step is not finite",
                do="check the step; the training may have diverged",
            )
        parts |= _parts(given, norm, taken, slope, limit)
        if not slope < 0.0:
            parts["note"] = f"the step does not descend: ⟨∇L, s⟩ is {slope:.3g}, not below 0"
            return RealizedEdge(math.nan, rounding=math.nan, **parts)
        errors = PointErrors(oracle, gradient, taken, losses=True)
        found = remainder(oracle, here, there, gradient, losses, errors)
        value = found.value / -slope
        rounding = edge_error(value, found.error, slope, errors, taken, losses[1])
        parts["note"] = NO_BOUND if math.isinf(rounding) else ""
        return RealizedEdge(value, rounding=rounding, **parts)


def _limit(norm: Any, lr: Any, threshold: Any) -> Threshold | float:
    """The threshold that was asked for; NaN if none was."""
    if lr is not None and threshold is not None:
        raise ArgumentError("lr= and threshold= both state the threshold", do="pass one of them")
    if norm is None and (lr is not None or threshold is not None):
        raise ArgumentError("a threshold is on S in a norm", do="pass norm= too")
    if threshold is None:
        return math.nan if lr is None else threshold_of(lr)
    value = as_number(threshold)
    if value is None or not value > 0.0:
        raise ArgumentError("threshold= must be a positive number", got=shown(threshold))
    return threshold if isinstance(threshold, Threshold) else value


def _parts(
    oracle: Oracle, norm: Any, s: Blocks, slope: float, limit: Threshold | float
) -> dict[str, float]:
    """Occupation and timing, by one product and a measurement of S."""
    if norm is None:
        return {"occupation": math.nan, "timing": math.nan}
    asked = as_norm(norm)
    found = sharpness(oracle, asked)
    length = float(asked.bind(oracle.space).value(s))
    edge = float(limit)
    if isinstance(limit, Threshold) and limit.applies_to != "S":
        edge *= float(found.dual_norm)
    curvature = float(dot(s, oracle.hvp(s)))
    square = length * length
    return {
        "occupation": curvature / (found.value * square) if found.value else math.nan,
        "timing": -2.0 * slope / (edge * square),
    }
