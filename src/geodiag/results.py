"""The result of a measurement: the value, how accurate it is, and how it was reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from geodiag.blocks import Blocks, is_array, to_numpy
from geodiag.core.display import pairs
from geodiag.core.validation import is_mapping_of_names, is_number, is_whole
from geodiag.errors import ArgumentError, shown


class Bound(Enum):
    """How the reported value relates to the true sharpness; each member's value explains it.

    Examples:
        >>> geodiag.Bound.LOWER.name
        'LOWER'
    """

    EXACT = (
        "the maximum itself: by enumeration, or as an eigenvalue to the stated residual, which is "
        "the top one with high probability"
    )
    LOWER = "a lower bound: attained by the returned direction; the maximum may be larger"

    @property
    def explanation(self) -> str:
        return str(self.value)


class Status(Enum):
    """How the estimate ended; each member's value says what happened and what to do.

    Examples:
        >>> geodiag.Status.CONVERGED.failed, geodiag.Status.NON_FINITE.failed
        (False, True)
    """

    CONVERGED = "the estimator met its tolerance"
    ENUMERATED = "every face of the unit ball was examined"
    COMPLETED = "the estimator took its fixed number of steps; it has no tolerance to meet"
    BUDGET = (
        "the budget of Hessian-vector products was spent before the tolerance was met; "
        "raise max_hvps, loosen rtol, or pass start=result to go on"
    )
    PRECISION = (
        "the tolerance is finer than this floating-point precision can resolve; "
        "measure in float64 or loosen rtol"
    )
    NON_FINITE = (
        "the loss, the gradient or a Hessian-vector product is NaN or infinite, as the notes say; "
        "check the parameters, the data and the learning rate"
    )

    @property
    def explanation(self) -> str:
        return str(self.value)

    @property
    def failed(self) -> bool:
        """Whether no usable value was reached."""
        return self is Status.NON_FINITE


STATE = {"witness", "age", "norm"}  # the keys of a state; those of older versions had no others
SEARCHED = ("found", "loss", "cold_loss")  # a Searched, where it is known


class Searched(NamedTuple):
    """What the last search found, the loss there, and that of the last cold one; NaN: not known.

    A later point is far from that one if either has changed much.
    """

    value: float = math.nan
    loss: float = math.nan
    cold_loss: float = math.nan  # at the last search from many starts

    def value_change(self, *values: float) -> float:
        """The largest factor, at least 1, by which a value differs from what was found.

        It is infinite where only one of the two is positive. Where neither is, searches end far
        apart, and their values say nothing: 1.
        """
        return max(_factor(self.value, value, math.inf) for value in values)

    def loss_change(self, loss: float) -> float:
        """The factor, at least 1, by which the loss has changed; 1 where its sign differs."""
        return _loss_factor(self.loss, loss)

    def loss_change_since_cold(self, loss: float) -> float:
        """The same, since the last search from many starts."""
        return _loss_factor(self.cold_loss, loss)


UNKNOWN = Searched()


def _loss_factor(then: float, now: float) -> float:
    return _factor(then, now, 1.0) if then > 0 else _factor(-then, -now, 1.0)


def _factor(then: float, now: float, opposite: float) -> float:
    if not (math.isfinite(then) and math.isfinite(now)) or (then <= 0 and now <= 0):
        return 1.0
    return max(then / now, now / then) if then > 0 and now > 0 else opposite


@dataclass(frozen=True)
class WarmStart:
    """Where a later measurement can start from: the parts of :attr:`SharpnessResult.state`.

    Attributes:
        witness: the direction by names of tensors; lists of numbers if it was read from JSON.
        age: how many measurements ago the last cold search was.
        norm: the norm of the witness, as it prints. In another norm it is only a direction.
        searched: what the last search found; in the state under the names of SEARCHED.
    """

    witness: Mapping[str, Any]
    age: int
    norm: str
    searched: Searched = UNKNOWN

    def to_dict(self) -> dict[str, Any]:
        """The state of a result."""
        state = {"witness": dict(self.witness), "age": self.age, "norm": self.norm}
        known = dict(zip(SEARCHED, map(float, self.searched), strict=True))
        return state | {name: x for name, x in known.items() if math.isfinite(x)}

    def to_json(self) -> dict[str, Any]:
        """The same of lists and plain numbers."""
        return self.to_dict() | {"witness": as_lists(self.witness), "age": int(self.age)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> WarmStart:
        """Read :meth:`to_dict` or :meth:`to_json`; arrays are checked where they are used.

        Raises:
            ArgumentError: a part is missing, or of another type.
        """
        if not is_state(state):
            raise ArgumentError("a state has a witness, an age and a norm", got=shown(state))
        if not is_whole(state["age"]) or state["age"] < 0:
            raise ArgumentError("the age in start= must be a count", got=shown(state["age"]))
        if not isinstance(state["norm"], str) or not is_mapping_of_names(state["witness"]):
            raise ArgumentError(
                "a state must name its norm, and hold a dict of arrays", got=shown(dict(state))
            )
        known = [state[name] for name in SEARCHED if name in state]
        if not all(is_number(x) and math.isfinite(x) for x in known):
            raise ArgumentError(
                "what the last search found, in start=, must be numbers", got=shown(known)
            )
        searched = Searched(*(float(state.get(name, math.nan)) for name in SEARCHED))
        return cls(state["witness"], int(state["age"]), state["norm"], searched)


def is_state(x: Any) -> bool:
    """Whether ``x`` has the keys of a state."""
    return isinstance(x, Mapping) and STATE <= set(x) <= STATE.union(SEARCHED)


def relative(error: float, value: float) -> float:
    """|error| relative to the value."""
    return error / abs(value) if value else math.inf if error else 0.0


def as_lists(blocks: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks as lists of numbers, for JSON."""
    return {name: to_numpy(x).tolist() if is_array(x) else x for name, x in blocks.items()}


@dataclass(frozen=True)
class SharpnessResult:
    """Generalized sharpness S = max over ‖d‖ = 1 of ⟨d, ∇²L d⟩ (arXiv 2603.05002).

    ``float(result)`` is the value. It is always ⟨d, Hd⟩ at the witness d, the unit-norm
    ``direction``, from a Hessian-vector product made for this purpose, so that up to rounding it
    never exceeds S.

    Attributes:
        value: a lower bound of S, in units of the loss per squared unit of the norm.
        direction: the witness: one array per tensor, ‖d‖ = 1.
        bound: whether the value is S itself or a lower bound.
        status: how the estimate ended.
        norm: the norm, as it prints.
        estimator: the estimator, as it prints.
        num_hvps: all Hessian-vector products that were computed.
        dual_norm: ‖∇L‖* in the same norm; normalized methods run at S/‖∇L‖* = 2/lr.
        loss: L(w).
        upper: a certified upper bound on S, or None.
        residual: relative, for quadratic norms: ‖P⁻¹Hd − S·d‖_P / |S|.
        rounding: how far rounding moves the value, where the loss is computed in fewer than 32 bits
            or the products are differences, with kinks of the gradient within their step; else
            None.
        spread: (best − worst) / |best| over starts, after equally many steps.
        history: the value after each iteration of the best start; Frank–Wolfe: of each restart.
        notes: what was done differently from what was asked, and why.
        state: a :class:`WarmStart` as a dict, for ``start=`` of a later measurement.

    Examples:
        >>> result = geodiag.sharpness(np.diag([1.0, -5.0]), "linf")
        >>> result.value, abs(result.direction["x"]).tolist()
        (1.0, [1.0, 0.0])
    """

    value: float
    direction: Blocks
    bound: Bound
    status: Status
    norm: str
    estimator: str
    num_hvps: int
    dual_norm: float
    loss: float = math.nan
    upper: float | None = None
    residual: float | None = None
    spread: float | None = None
    history: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    state: dict[str, Any] = field(default_factory=dict, repr=False)
    rounding: float | None = None

    @property
    def gap(self) -> float | None:
        """upper / value − 1: by how much S can exceed the value, relative to it; or None."""
        if self.upper is None or self.value <= 0:
            return None
        return self.upper / self.value - 1.0

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        sign = "=" if self.bound is Bound.EXACT else "≥"
        upper = "" if self.upper is None else f", at most {self.upper:.6g}"
        bound = f"{self.bound.name}, {self.status.name}, {self.num_hvps} HVPs"
        text = f"S {sign} {self.value:.6g}{upper} in {self.norm} ({bound})"
        return "\n".join([text, *(f"  note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        sign = "=" if self.bound is Bound.EXACT else "≥"
        return pairs(
            f"S {sign} {self.value:.6g} in {self.norm}",
            [
                ("certified upper bound", self.upper),
                ("bound", f"{self.bound.name}: {self.bound.explanation}"),
                ("status", f"{self.status.name}: {self.status.explanation}"),
                ("loss", self.loss),
                ("‖∇L‖*", self.dual_norm),
                ("residual", self.residual),
                ("rounding", self.rounding),
                ("spread over starts", self.spread),
                ("Hessian-vector products", self.num_hvps),
                ("estimator", self.estimator),
            ],
            self.notes,
        )

    def __repr__(self) -> str:
        bracket = f", upper={self.upper:.6g}" if self.upper is not None else ""
        spread = f", spread={self.spread:.2g}" if self.spread is not None else ""
        return (
            f"SharpnessResult({self.value:.6g}{bracket}, bound={self.bound.name}, "
            f"status={self.status.name}, norm={self.norm}, estimator={self.estimator}, "
            f"num_hvps={self.num_hvps}{spread})"
        )
