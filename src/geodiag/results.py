"""What a measurement answers: the value, how good it is, and how it was reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from geodiag.blocks import Blocks


class Bound(Enum):
    """What the reported value is to the true sharpness; the value of a member explains it."""

    EXACT = (
        "the maximum itself: by enumeration, or as an eigenvalue to the stated residual, which is "
        "the top one with high probability"
    )
    LOWER = "a lower bound: attained by the returned direction; the maximum may be larger"

    @property
    def explanation(self) -> str:
        return str(self.value)


class Status(Enum):
    """How the estimate ended; the value of a member says what happened and what to do."""

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
        "the loss, the gradient or a Hessian-vector product is NaN or infinite; "
        "check the parameters, the data and the learning rate"
    )

    @property
    def explanation(self) -> str:
        return str(self.value)

    @property
    def failed(self) -> bool:
        """Whether no usable value was reached."""
        return self is Status.NON_FINITE


@dataclass(frozen=True)
class SharpnessResult:
    """Generalized sharpness S = max over ‖d‖ = 1 of ⟨d, ∇²L d⟩ (arXiv 2603.05002), with its proof.

    ``float(result)`` is the value. ``value`` is always ⟨d, Hd⟩ at ``direction``, from a fresh and
    unmodified Hessian-vector product, so it never exceeds S (to rounding).
    """

    value: float  # loss units per squared unit of the norm
    direction: Blocks  # the witness d: one array per tensor, ‖d‖ = 1
    bound: Bound
    status: Status
    norm: str  # the norm that was measured in, as it prints
    estimator: str
    num_hvps: int  # Hessian-vector products, every one counted
    dual_norm: float  # ‖∇L‖* in the same norm: normalized methods run at S/‖∇L‖* = 2/lr
    upper: float | None = None  # a certified upper bound on S
    residual: float | None = None  # relative: ‖P⁻¹Hd − S·d‖_P / |S| for quadratic norms
    spread: float | None = None  # (best − worst) / |best| over starts, after equally many steps
    history: tuple[float, ...] = ()  # per iteration of the best start; Frank–Wolfe: per restart
    notes: tuple[str, ...] = ()  # what was done otherwise than asked, and why
    state: dict[str, Any] = field(default_factory=dict, repr=False)  # for start=

    @property
    def gap(self) -> float | None:
        """upper / value − 1: how far the truth can be above the value, or None."""
        if self.upper is None or self.value <= 0:
            return None
        return self.upper / self.value - 1.0

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        bracket = f", upper={self.upper:.6g}" if self.upper is not None else ""
        spread = f", spread={self.spread:.2g}" if self.spread is not None else ""
        return (
            f"SharpnessResult({self.value:.6g}{bracket}, bound={self.bound.name}, "
            f"status={self.status.name}, norm={self.norm}, estimator={self.estimator}, "
            f"num_hvps={self.num_hvps}{spread})"
        )
