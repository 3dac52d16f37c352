"""The learning rate at which a step would leave the loss as it is: forward passes alone.

Along a step s from w the critical multiple is α_c = min{α > 0 : L(w + αs) > L(w)}, the critical
learning rate α_c·lr, and the critical sharpness 2/(α_c·lr) (arXiv 2601.16979). It needs no norm and
no Hessian-vector product, and is of any optimizer's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from geodiag.blocks import Blocks, axpy, dot, epsilon
from geodiag.core.display import pairs, titled
from geodiag.core.root_bracketing import RTOL, Crossing, Earlier, by_values, search
from geodiag.core.validation import as_number, as_step, is_whole, own_arithmetic
from geodiag.errors import ArgumentError, EngineError, NonFiniteError, shown
from geodiag.optimizers.thresholds import require_lr
from geodiag.oracles import Oracle
from geodiag.problems import resolved_oracle

# A change of the loss by fewer roundings of it than this tells nothing.
ROUNDINGS = 16.0


class CriticalLR(float):
    """A critical learning rate: a float with the search that it comes from.

    Attributes:
        factor: α_c, the multiple of the step; the value is this times ``lr``.
        lr: as it was passed; None: the value is α_c.
        sharpness: 2/value, the critical sharpness; NaN without ``lr``.
        bracket: below and above the value: at the first the loss has not risen, at the second it
            has. Where it has not been found on one side, that end is 0 or infinite.
        num_losses: losses that were evaluated, L(w) not counted.
        bracketed: whether both ends were found; if not, the value is NaN.
        rate: the slope of the line by which it was found; the next search of a run goes by it.
        note: why the value is NaN; else "".

    Examples:
        >>> H = np.diag([18.0, 4.0, 1.0])
        >>> step = {"x": -0.1 * H @ np.ones(3)}
        >>> pair = (lambda w: w["x"] @ H @ w["x"] / 2, lambda w: {"x": H @ w["x"]})
        >>> found = geodiag.critical_lr(pair, step, 0.1, params={"x": np.ones(3)})
        >>> found.bracketed, bool(found.bracket[0] < 0.115652 < found.bracket[1])
        (True, True)
    """

    factor: float
    lr: float | None
    sharpness: float
    bracket: tuple[float, float]
    num_losses: int
    bracketed: bool
    rate: float
    note: str

    def __new__(cls, found: Crossing, lr: float | None = None, note: str = "") -> CriticalLR:
        unit = 1.0 if lr is None else lr
        factor = math.nan if note else found.middle
        self = super().__new__(cls, factor * unit)
        self.factor, self.lr, self.note = factor, lr, note
        self.sharpness = math.nan if lr is None else 2.0 / (factor * unit)
        self.bracket, self.rate = (found.lo * unit, found.hi * unit), found.rate
        self.num_losses, self.bracketed = found.num_losses, found.bracketed and not note
        return self

    def __getnewargs__(self) -> Any:
        unit = 1.0 if self.lr is None else self.lr
        lo, hi = (end / unit for end in self.bracket)
        return Crossing(lo, hi, self.num_losses, self.rate), self.lr, self.note

    def _repr_html_(self) -> str:
        lo, hi = self.bracket
        what = "multiple of the step" if self.lr is None else "learning rate"
        rows = [
            ("between", f"{lo:.6g} and {hi:.6g}"),
            ("multiple of the step", self.factor),
            ("critical sharpness", self.sharpness),
            ("losses", self.num_losses),
        ]
        return pairs(titled(f"Critical {what}:", self), rows, [self.note])

    def __repr__(self) -> str:
        if self.note:
            return f"CriticalLR(nan; {self.note})"
        lo, hi = self.bracket
        return f"CriticalLR({float(self):.6g}, between {lo:.6g} and {hi:.6g})"


def critical_lr(
    model: Any,
    step: Blocks,
    lr: float | None = None,
    *,
    rtol: float | None = None,
    max_losses: int = 20,
    **problem_arguments: Any,
) -> CriticalLR:
    """The learning rate at which ``step`` = w⁺ − w would not lower the loss (arXiv 2601.16979).

    The search starts where a quadratic through L(w), L(w⁺) and the slope crosses L(w) again, so
    that two to four losses usually do, with one gradient; without a gradient it starts at the
    step itself, and doubles or halves. It goes on by secants of logarithms, which are exact where
    the loss bends as a power of the step, until the crossing lies between two multiples of it:
    a 16th apart near the edge; beyond 4 steps, ln α_c is known to a 16th. Where the loss is next
    to 0 over a long stretch, as cross-entropy may be, the first search takes six to ten.
    If the loss falls and rises several times along the step, it may find another crossing than the
    first.

    Args:
        model: as in :func:`geodiag.sharpness`.
        step: blocks of w⁺ − w, with the measured parameters' names and shapes.
        lr: the learning rate of the step. Without it the value is the multiple of the step.
        rtol: the search ends at a bracket of 1 − below/above ≤ rtol. By default at 1/16, and from
            4 steps below on, at ln(above/below) ≤ ln(below)/16, with both in steps.
        max_losses: the largest number of losses.
        **problem_arguments: as in :func:`geodiag.problem`.

    Returns:
        CriticalLR: a float in the unit of ``lr``; NaN, with the reason in ``note``, where the step
        does not descend, the search found no bracket, or the losses differ by rounding alone.

    Raises:
        ShapeError: ``step`` has other names or shapes than the parameters.
        ArgumentError: a step that is zero or not finite, or an argument out of its range.
        NonFiniteError: the loss at w is not finite.

    Examples:
        On a quadratic the loss is back at α_c = 2⟨−g, s⟩/⟨s, Hs⟩, here 5.

        >>> H, step = np.diag([4.0, 1.0]), {"x": np.array([-0.1, 0.0])}
        >>> pair = (lambda w: w["x"] @ H @ w["x"] / 2, lambda w: {"x": H @ w["x"]})
        >>> at = {"x": np.array([0.25, 0.0])}
        >>> abs(geodiag.critical_lr(pair, step, params=at) - 5.0) < 5.0 / 16
        True
    """
    lr = None if lr is None else require_lr(lr)
    rtol = None if rtol is None else _within(rtol, "rtol", 0.0, 1.0)
    if not (is_whole(max_losses) and max_losses >= 1):
        raise ArgumentError("max_losses must be a whole number, at least 1", got=shown(max_losses))
    with (
        resolved_oracle(model, **problem_arguments) as oracle,
        oracle.surroundings(),
        own_arithmetic(),
    ):
        s = as_step(step, oracle.space)
        return _along(oracle, s, lr, rtol, max_losses)


def _along(
    oracle: Oracle, s: Blocks, lr: float | None, rtol: float | None, most: int
) -> CriticalLR:
    point = oracle.point()
    try:
        slope, here = float(dot(oracle.gradient(), s)), float(oracle.loss())
    except EngineError:  # some models have a loss and nothing else
        slope, here = math.nan, float(oracle.loss_at(point))
    if not math.isfinite(here):
        raise NonFiniteError("the loss at w is not finite", got=f"{here}")

    def rise(alpha: float) -> float:
        return float(oracle.loss_at(axpy(alpha, s, point))) - here

    if math.isnan(slope):
        found = search(lambda alpha: not rise(alpha) <= 0.0, 1.0, rtol or RTOL, most)
        return CriticalLR(found, lr, found.note)
    if not slope < 0.0:
        return CriticalLR(Crossing(0.0, math.inf, 0), lr, not_descending(slope))
    taken = rise(1.0)
    noise = ROUNDINGS * max(epsilon(s), oracle.precision) * abs(here)
    return from_step(rise, slope, taken, taken - slope, noise, lr, rtol=rtol, most=most)


def not_descending(slope: float) -> str:
    """Why a step of this slope ⟨∇L, s⟩ has no critical learning rate."""
    return f"the step does not descend: ⟨∇L, s⟩ is {slope:.3g}, not below 0"


def from_step(
    rise: Callable[[float], float],
    slope: float,
    taken: float,
    bend: float,
    noise: float,
    lr: float | None,
    *,
    rtol: float | None = None,
    most: int = 20,
    earlier: Earlier | None = None,
) -> CriticalLR:
    """The search from what the step itself tells, in which one loss is spent.

    Args:
        rise: L(w + αs) − L(w).
        slope: ⟨∇L(w), s⟩, below 0.
        taken: ``rise(1.0)``.
        bend: ``taken − slope``, or a better value where rounding takes that.
        noise: what rounding may move a difference of losses by.
        lr: as in :func:`critical_lr`, like the next one.
        rtol: as in :func:`critical_lr`.
        most: the largest number of losses, that of the step among them.
        earlier: where to begin, if not at 1/ζ.
    """
    found = by_values(rise, slope, bend, not taken <= 0.0, rtol, most, earlier)
    if found.bracketed and found.middle * -slope < noise:
        return CriticalLR(found, lr, "the losses along the step differ by rounding alone")
    return CriticalLR(found, lr, found.note)


def _within(x: Any, name: str, low: float, high: float) -> float:
    value = as_number(x)
    if value is None or not low < value < high:
        raise ArgumentError(f"{name} must lie between {low:g} and {high:g}", got=shown(x))
    return value
