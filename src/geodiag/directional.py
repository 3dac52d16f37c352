"""Directional smoothness along a step s = w⁺ − w, in any norm.

remainder   2[L(w⁺) − L(w) − ⟨g, s⟩]/‖s‖²        arXiv 2603.05002; ΔL = −η(1 − ηD/2)‖g‖*²
optimal     |remainder|                           arXiv 2403.04081
pointwise   2‖∇L(w⁺) − ∇L(w)‖*/‖s‖                arXiv 2403.04081
path        sup over t of ⟨∇L(w + ts) − ∇L(w), s⟩/(t‖s‖²)     arXiv 2403.04081
curvature   ⟨s, ∇²L(w) s⟩/‖s‖²                    the limit of the others as s → 0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geodiag.blocks import (
    Blocks,
    add,
    all_finite,
    axpy,
    dot,
    epsilon,
    map_blocks,
    namespace,
    subtract,
)
from geodiag.core.validation import as_blocks, as_number, own_arithmetic
from geodiag.errors import ArgumentError, NonFiniteError, NormError, shown
from geodiag.norms.base import Norm
from geodiag.oracles import Oracle
from geodiag.problems import as_norm, resolved_oracle

PATH_POINTS = 16


class DirectionalSmoothness(float):
    """A directional smoothness: a float with its kind, its norm and its rounding error.

    Attributes:
        kind: as it was asked for.
        norm: the norm's repr.
        rounding: by how much the precision of the losses, or of the Hessian-vector product, can
            change the value; None: not estimated.

    Examples:
        >>> step = {"x": np.array([1.0, 0.0])}
        >>> d = geodiag.directional_smoothness(np.eye(2), step, kind="curvature")
        >>> float(d), d.kind
        (1.0, 'curvature')
    """

    kind: str
    norm: str
    rounding: float | None

    def __new__(
        cls, value: float, kind: str, norm: str, rounding: float | None = None
    ) -> DirectionalSmoothness:
        self = super().__new__(cls, value)
        self.kind, self.norm, self.rounding = kind, norm, rounding
        return self

    def __getnewargs__(self) -> Any:
        return float(self), self.kind, self.norm, self.rounding

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
            lower bound: the largest value at 16 points t in (0, 1].
        **problem_arguments: as in :func:`geodiag.problem`.

    Returns:
        DirectionalSmoothness: a float, in loss units per squared unit of the norm, with ``kind``
        and ``rounding``.

    Raises:
        ShapeError: ``step`` has other names or shapes than the parameters.
        ArgumentError: a zero or non-finite step, or an unknown kind.
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
            s = as_blocks(step, oracle.space, "step")
            if not bool(all_finite(s)) or not 0 < _number(
                bound.value(s), "value(d)", bound
            ) < float("inf"):
                raise ArgumentError(
                    "step= must be finite and not zero: nothing moved",
                    do="pass w⁺ − w of a step that was taken",
                )
            value, rounding = _KINDS[kind](oracle, bound, s)
        if value != value or abs(value) == float("inf"):
            raise NonFiniteError(
                "the loss or the gradient at one end of the step is not finite",
                do="check the step; the training may have diverged",
            )
        return DirectionalSmoothness(value, kind, repr(asked), rounding)


def _remainder(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[float, float | None]:
    here = oracle.point()
    there = add(here, s)
    taken = subtract(there, here)  # the step as it is after rounding
    before, after = float(oracle.loss()), float(oracle.loss_at(there))
    g = oracle.gradient()
    slope, length2 = float(dot(g, taken)), _square(norm.value(taken))
    if length2 == 0.0:
        raise ArgumentError(
            "step= is lost to rounding when it is added to the parameters",
            do="measure a longer step, or in float64",
        )
    eps = max(epsilon(s), oracle.precision)
    rounding = 2 * eps * (abs(before) + abs(after) + abs(slope)) / length2
    return 2 * (after - before - slope) / length2, rounding


def _square(length: Any) -> float:
    return float(length) * float(length)  # ** would raise where this is infinite


def _number(x: Any, what: str, norm: Norm) -> float:
    value = as_number(x)
    if value is None:
        raise NormError(f"{what} of {norm!r} must be a 0-d array", got=shown(x))
    return value


def _optimal(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[float, float | None]:
    value, rounding = _remainder(oracle, norm, s)
    return abs(value), rounding


def _pointwise(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[float, float | None]:
    there = oracle.gradient_at(add(oracle.point(), s))
    change = subtract(there, oracle.gradient())
    if not bool(all_finite(change)):  # a dual norm that needs an SVD would raise
        return float("nan"), None
    return 2 * _number(norm.dual(change), "dual(g)", norm) / float(norm.value(s)), None


def _path(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[float, float | None]:
    length2, here = _square(norm.value(s)), oracle.gradient()
    values = []
    if length2 == 0.0:
        return float("nan"), None
    for k in range(1, PATH_POINTS + 1):
        t = k / PATH_POINTS
        there = oracle.gradient_at(axpy(t, s, oracle.point()))
        values.append(float(dot(subtract(there, here), s)) / (t * length2))
    return (float("nan") if any(v != v for v in values) else max(values)), None


def _curvature(oracle: Oracle, norm: Norm, s: Blocks) -> tuple[float, float | None]:
    image, length2 = oracle.hvp(s), _square(norm.value(s))
    if not length2:
        return float("nan"), None
    terms = map_blocks(lambda x, y: abs(x * y), s, image)
    size = sum(float(namespace(terms).sum(x)) for x in terms.values())
    rounding = max(epsilon(s), oracle.precision) * size / length2
    return float(dot(s, image)) / length2, rounding


_KINDS: dict[str, Callable[[Oracle, Norm, Blocks], tuple[float, float | None]]] = {
    "remainder": _remainder,
    "optimal": _optimal,
    "pointwise": _pointwise,
    "path": _path,
    "curvature": _curvature,
}
