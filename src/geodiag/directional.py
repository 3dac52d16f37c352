"""Directional smoothness along a step s = w⁺ − w, in any norm.

remainder   2[L(w⁺) − L(w) − ⟨g, s⟩]/‖s‖²        arXiv 2603.05002; ΔL = −η(1 − ηD/2)‖g‖*²
optimal     |remainder|                           arXiv 2403.04081
pointwise   2‖∇L(w⁺) − ∇L(w)‖*/‖s‖                arXiv 2403.04081
path        sup over t of ⟨∇L(w + ts) − ∇L(w), s⟩/(t‖s‖²)     arXiv 2403.04081
curvature   ⟨s, ∇²L(w) s⟩/‖s‖²                    the limit of the others as s → 0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from geodiag.blocks import (
    Blocks,
    add,
    all_finite,
    divide,
    dot,
    largest,
    map_blocks,
    namespace,
    scale,
    subtract,
)
from geodiag.core.display import pairs, titled
from geodiag.core.validation import as_number, as_step, own_arithmetic
from geodiag.errors import ArgumentError, NonFiniteError, NormError, product_not_finite, shown
from geodiag.estimators.roundoff import (
    PointErrors,
    coarsest,
    curvature_error,
    remainder,
)
from geodiag.norms.base import Norm
from geodiag.oracles import Oracle
from geodiag.problems import as_norm, resolved_oracle

PATH_POINTS = 16
LOST = "step= is lost to rounding when it is added to the parameters"
BOTH_ENDS = math.sqrt(2)  # the error of a difference, to that of each
LARGEST_OF = 2.0  # the error of the largest of PATH_POINTS values, to that of each
SMALLEST, LARGEST = 1e-280, 1e280  # squares beyond these lose digits


class DirectionalSmoothness(float):
    """A directional smoothness: a float with its kind, its norm and its rounding error.

    Attributes:
        kind: as it was asked for.
        norm: the norm's repr.
        rounding: how far rounding may have moved the value: in 95 % of cases no further. It may
            exceed |value|, which then says no more than how small D is. It is estimated from
            other evaluations, of gradients along the step or near its ends; where the step is long
            and the loss has kinks, it includes the error of that estimate.

    Examples:
        >>> step = {"x": np.array([1.0, 0.0])}
        >>> d = geodiag.directional_smoothness(np.eye(2), step, kind="curvature")
        >>> float(d), d.kind
        (1.0, 'curvature')
    """

    kind: str
    norm: str
    rounding: float | None  # None where it is made by hand

    def __new__(
        cls, value: float, kind: str, norm: str, rounding: float | None = None
    ) -> DirectionalSmoothness:
        self = super().__new__(cls, value)
        self.kind, self.norm, self.rounding = kind, norm, rounding
        return self

    def __getnewargs__(self) -> Any:
        return float(self), self.kind, self.norm, self.rounding

    def _repr_html_(self) -> str:
        rows = [("kind", self.kind), ("norm", self.norm), ("rounding", self.rounding)]
        return pairs(titled("Directional smoothness D:", self), rows)

    def __repr__(self) -> str:
        error = "" if self.rounding is None else f", rounding=±{self.rounding:.1g}"
        return f"DirectionalSmoothness({float(self):.6g}, {self.kind}, norm={self.norm}{error})"


def directional_smoothness(
    model: Any,
    step: Blocks,
    norm: Norm | str = "l2",
    *,
    kind: str = "remainder",
    **problem_arguments: Any,
) -> DirectionalSmoothness:
    """Directional smoothness D along ``step`` = w⁺ − w from the model's current point w.

    A step of gradient descent with learning rate η changes the loss by −η(1 − ηD/2)‖g‖*², so D
    above 2/η means that the loss rises (arXiv 2603.05002).

    Args:
        model: as in :func:`geodiag.sharpness`.
        step: blocks of w⁺ − w, with the measured parameters' names and shapes.
        norm: a registered name or a Norm object.
        kind: "remainder" (default), "pointwise", "path", "optimal" or "curvature". "path" is a
            lower bound: the largest value at 16 points t in (0, 1]. "remainder" and "optimal" are
            from gradients along the step where the difference of the losses is lost to rounding:
            2∫⟨∇L(w + ts) − ∇L(w), s⟩dt/‖s‖² is the same number. All but "curvature" are of the
            step as it is after rounding, w + s − w, and of a loss of fewer than 32 bits in float32
            (:meth:`geodiag.Oracle.in_float32`).
        **problem_arguments: as in :func:`geodiag.problem`.

    Returns:
        DirectionalSmoothness: a float, in loss units per squared unit of the norm, with ``kind``
        and ``rounding``.

    Raises:
        ShapeError: ``step`` has other names or shapes than the parameters.
        ArgumentError: a step that is zero, not finite, too short or too long for the precision, or
            an unknown kind.
        NonFiniteError: the loss or gradient at either end is not finite.

    Examples:
        On a quadratic D is ⟨s, Hs⟩/‖s‖².

        >>> H, step = np.diag([4.0, 1.0]), {"x": np.array([0.0, -0.5])}
        >>> float(geodiag.directional_smoothness(H, step))
        1.0
    """
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ArgumentError(
            "unknown kind of directional smoothness", got=shown(kind), do=f"use {sorted(_KINDS)}"
        )
    with resolved_oracle(model, **problem_arguments) as oracle:
        asked = as_norm(norm)
        bound = asked.bind(oracle.space)
        with oracle.surroundings(), own_arithmetic():
            s = as_step(step, oracle.space)
            _check_length(bound, s)
            if kind != "curvature":
                oracle = oracle.in_float32() or oracle
            value, rounding = _KINDS[kind](oracle, bound, s)
        if value != value or abs(value) == float("inf"):
            raise NonFiniteError(
                "the loss or the gradient at one end of the step is not finite",
                do="check the step; the training may have diverged",
            )
        return DirectionalSmoothness(value, kind, repr(asked), rounding)


def _check_length(norm: Norm, s: Blocks) -> None:
    length = _number(norm.value(s), "value(d)", norm)
    if not 0 < length < float("inf"):
        raise ArgumentError(
            "the norm of step= is beyond this precision",
            got=f"entries of up to {float(largest(s)):.3g}, a norm of {length:g}",
            do="scale the parameters, or measure in float64",
        )


def _number(x: Any, what: str, norm: Norm) -> float:
    value = as_number(x)
    if value is None:
        raise NormError(f"{what} of {norm!r} must be a 0-d array", got=shown(x))
    return value


def _remainder(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[float, float]:
    here, there, _, length = _taken(oracle, norm, s)
    losses = float(oracle.loss_at(there)), float(oracle.loss())
    found = remainder(oracle, here, there, oracle.gradient(), losses)
    return per_square(2 * found.value, length), per_square(2 * found.error, length)


def _optimal(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[float, float]:
    value, rounding = _remainder(oracle, norm, s)
    return abs(value), rounding


def _pointwise(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[float, float]:
    _, there, taken, length = _taken(oracle, norm, s)
    g = oracle.gradient()
    change = subtract(oracle.gradient_at(there), g)
    if not bool(all_finite(change)):  # a dual norm that needs an SVD would raise
        return float("nan"), float("inf")
    size = _number(norm.dual(change), "dual(g)", norm)
    error = PointErrors(oracle, g, taken).of(lambda e: float(norm.dual(e)))
    return 2 * size / length, 2 * BOTH_ENDS * error / length


def _path(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[float, float]:
    here, _, taken, _ = _taken(oracle, norm, s)
    g = oracle.gradient()
    errors = PointErrors(oracle, g, taken)
    found: list[tuple[float, float]] = []
    for k in range(1, PATH_POINTS + 1):
        ts = scale(s, k / PATH_POINTS)
        there = add(here, ts)
        u = subtract(there, here)  # ts, as it is after rounding
        length = float(norm.value(u))
        if length > 0:
            change = subtract(oracle.gradient_at(there), g)
            value = per_square(float(dot(change, u)), length)
            # To first order, what the part that was rounded off would add.
            moved = per_square(2 * abs(float(dot(change, subtract(u, ts)))), length)
            moved += abs(value) * abs(1 - (float(norm.value(ts)) / length) ** 2)
            terms = float(dot(map_blocks(abs, change), map_blocks(abs, u)))
            error = LARGEST_OF * (BOTH_ENDS * errors.along(u) + coarsest(oracle, u) * terms)
            found.append((value, per_square(error, length) + moved))
    best, error = max(found, key=lambda each: each[0])
    if any(value != value for value, _ in found):
        return float("nan"), float("inf")
    return best, max(error, max(value + each for value, each in found) - best)


def _curvature(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[float, float]:
    length = float(norm.value(s))
    limits = _limits(s)
    if not limits.smallest_normal / limits.eps < length * length < limits.max * limits.eps:
        s = divide(s, length)
        length = float(norm.value(s))
    image = oracle.hvp(s)
    if not bool(all_finite(image)) and bool(all_finite(oracle.gradient())):
        if not oracle.use_differences():
            raise product_not_finite()
        image = oracle.hvp(s)
    error = curvature_error(oracle, s, image)
    return per_square(float(dot(s, image)), length), per_square(error, length)


def _taken(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[Blocks, Blocks, Blocks, float]:
    """w, w + s, the step between them as it is after rounding, and its length."""
    here = oracle.point()
    there = add(here, s)
    taken = subtract(there, here)
    length = float(norm.value(taken))
    if is_too_short(s, length):
        raise ArgumentError(
            LOST if length == 0.0 else "step= is too short: its square underflows",
            do="measure a longer step, or in float64",
        )
    return here, there, taken, length


def is_too_short(s: Blocks, length: float) -> bool:
    """Whether the square of a step's length underflows in the dtype of ``s``."""
    return length * length < float(_limits(s).smallest_normal)


def _limits(s: Blocks) -> Any:
    return namespace(s).finfo(next(iter(s.values())).dtype)


def per_square(x: float, length: float) -> float:
    """x/length², also where the square over- or underflows."""
    square = length * length
    return x / square if SMALLEST < square < LARGEST else x / length / length


_KINDS: dict[str, Callable[[Oracle, Norm, Blocks], tuple[float, float]]] = {
    "remainder": _remainder,
    "optimal": _optimal,
    "pointwise": _pointwise,
    "path": _path,
    "curvature": _curvature,
}
