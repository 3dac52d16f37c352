"""Thresholds on the sharpness: where an update rule loses stability.

Linear stability on a quadratic with curvature λ: the update is at its edge where an eigenvalue of
its linear map reaches −1. All rows follow from one formula,

    λ* = k(β) · (2/η − γ_decoupled) − γ_coupled

    plain 1;  heavy ball 1 + β;  Nesterov (1 + β)/(1 + 2β);  EMA: these divided by 1 − β

For any norm without momentum λ is S (arXiv 2603.05002, Theorem 5.1). With momentum or weight decay
λ is an eigenvalue in a quadratic norm (EMA momentum: arXiv 2207.14484), and a heuristic in others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from geodiag.core.display import pairs, titled
from geodiag.core.validation import as_number, require_flag
from geodiag.errors import ArgumentError, shown
from geodiag.optimizers.filters import (
    Filter,
    check_filter,
    crossing,
    ema,
    heavy_ball,
    identity,
    nadam,
    nesterov,
)


class Threshold(float):
    """A threshold on the sharpness: a float with what it applies to, and why.

    Attributes:
        applies_to: what to compare with it: "S" or "S/‖g‖*".
        provenance: the assumptions behind it, and their source.

    Examples:
        >>> edge = geodiag.threshold(0.1, normalized=True)
        >>> float(edge), edge.applies_to
        (20.0, 'S/‖g‖*')
    """

    applies_to: str
    provenance: str

    def __new__(cls, value: float, applies_to: str, provenance: str) -> Threshold:
        self = super().__new__(cls, value)
        self.applies_to, self.provenance = applies_to, provenance
        return self

    def __getnewargs__(self) -> Any:
        return float(self), self.applies_to, self.provenance

    def _repr_html_(self) -> str:
        return pairs(titled(f"Threshold on {self.applies_to}:", self), [("of", self.provenance)])

    def __repr__(self) -> str:
        return f"Threshold({float(self):.6g} on {self.applies_to}; {self.provenance})"


def threshold(
    lr: float,
    *,
    normalized: bool = False,
    dual_norm: float | None = None,
    momentum: float = 0.0,
    ema: bool = False,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    filter: Filter | None = None,
) -> Threshold:
    """The sharpness at which an update with these settings loses stability.

    Args:
        lr: step size η.
        normalized: the update is −lr·lmo(g) and not −lr·‖g‖*·lmo(g) (SignGD, Muon). The threshold
            is 2/lr on S/‖g‖*.
        dual_norm: ‖g‖* of a normalized update; the threshold is then 2‖g‖*/lr on S.
        momentum: β, in [0, 1).
        ema: the momentum buffer is an average, m ← βm + (1 − β)g (Adam), not a sum (SGD).
        nesterov: torch's form, the step is along g + βm (ema: (1 − β)g + βm).
        weight_decay: γ.
        decoupled: the decay shrinks the weights (AdamW) and is not added to the gradient (L2).
        filter: instead of ``momentum``, ``ema`` and ``nesterov``: the coefficients (b, a) of any
            linear filter of past gradients, as of :func:`scipy.signal.lfilter`; see
            :mod:`geodiag.filters` for those with a name.

    Returns:
        A float with ``applies_to`` and ``provenance``; NaN, with the reason, where no threshold is
        established (normalized updates with momentum or weight decay).

    Raises:
        ArgumentError: a value out of its range, or a filter that is unstable or does not descend.

    Examples:
        >>> threshold(0.1, momentum=0.9)
        Threshold(38 on S; heavy-ball momentum, linear stability in a quadratic norm)
        >>> float(threshold(0.1, normalized=True, dual_norm=3.0))
        60.0
        >>> threshold(0.1, filter=geodiag.filters.qhm(0.9, 0.7))
        Threshold(59.375 on S; linear filter of gradients, linear stability in a quadratic norm)
    """
    normalized, ema = require_flag(normalized, "normalized"), require_flag(ema, "ema")
    nesterov, decoupled = require_flag(nesterov, "nesterov"), require_flag(decoupled, "decoupled")
    lr = require_lr(lr)
    beta, decay = _number(momentum, "momentum"), _number(weight_decay, "weight_decay")
    if not 0.0 <= beta < 1.0:
        raise ArgumentError("momentum must lie in [0, 1)", got=shown(beta))
    if not 0.0 <= decay < math.inf:
        raise ArgumentError("weight_decay must be at least 0", got=shown(decay))
    if nesterov and beta == 0.0:
        raise ArgumentError("nesterov=True needs momentum > 0", got=f"momentum={beta!r}")
    if dual_norm is not None:
        dual_norm = _number(dual_norm, "dual_norm")
        if not normalized:
            do = "pass normalized=True, or leave it out"
            raise ArgumentError("dual_norm= belongs to normalized updates", do=do)
        if not 0.0 <= dual_norm < math.inf:
            raise ArgumentError("dual_norm must be at least 0", got=shown(dual_norm))
    if filter is not None:
        if beta or ema or nesterov:
            raise ArgumentError(
                "filter= and momentum=, ema= or nesterov= both state the momentum",
                do="pass one of them",
            )
        filter = check_filter(filter)
    if normalized:
        return _normalized(lr, dual_norm, bool(beta or decay or filter not in (None, identity())))
    if filter is not None:
        return _filtered(lr, filter, decay, decoupled)
    k, name = 1.0, "gradient descent in any norm, arXiv 2603.05002"
    if beta:
        k, name = 1 + beta, "heavy-ball momentum"
        if nesterov:
            k, name = k / (1 + 2 * beta), "Nesterov momentum"
        if ema:
            k, name = k / (1 - beta), "EMA " + name
        name += ", linear stability in a quadratic norm"
    if decay:
        name += f", {'decoupled' if decoupled else 'L2'} weight decay"
    value = k * (2.0 / lr - (decay if decoupled else 0.0)) - (0.0 if decoupled else decay)
    return Threshold(_finite(value, lr), "S", name)


def _filtered(lr: float, filter: Filter, decay: float, decoupled: bool) -> Threshold:
    value = crossing(filter, lr * decay if decoupled else 0.0) / lr
    name = "linear filter of gradients, linear stability in a quadratic norm"
    if decay:
        name += f", {'decoupled' if decoupled else 'L2'} weight decay"
        value -= 0.0 if decoupled else decay
    return Threshold(_finite(value, lr), "S", name)


def _normalized(lr: float, dual_norm: float | None, momentum_or_decay: bool) -> Threshold:
    applies_to = "S/‖g‖*" if dual_norm is None else "S"
    if momentum_or_decay:
        why = "none established for normalized updates with momentum or weight decay"
        return Threshold(math.nan, applies_to, why)
    value = _finite(2.0 / lr * (1.0 if dual_norm is None else dual_norm), lr)
    return Threshold(value, applies_to, "2/lr for normalized updates, arXiv 2603.05002")


# Attributes of an Update that are no arguments of :func:`threshold`.
_OF_THE_RECORD = ("unknown", "caveat", "scale")


@dataclass(frozen=True)
class Update:
    """The update rule in force at one step, as the optimizer states it.

    Attributes:
        unknown: why no threshold applies (the measured norm is not the optimizer's, say). Threshold
            and ratio are then NaN, and the record's note gives this reason. The other attributes
            are arguments of :func:`geodiag.threshold`.
        caveat: what the threshold rests on and could not be checked, for the record's note.
        scale: what the gradient was multiplied by before the optimizer, as by clipping: the
            threshold is divided by it.

    Examples:
        >>> geodiag.Update(lr=0.1, momentum=0.9).lr
        0.1
    """

    lr: float
    normalized: bool = False
    momentum: float = 0.0
    ema: bool = False
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    filter: Filter | None = None
    unknown: str = ""
    caveat: str = ""
    scale: float = 1.0

    def threshold(self, dual_norm: float | None) -> Threshold:
        """:func:`geodiag.threshold` of this rule, on S where ‖g‖* is given.

        Raises:
            ArgumentError: a value out of its range.
        """
        settings = {name: x for name, x in vars(self).items() if name not in _OF_THE_RECORD}
        found = threshold(**settings, dual_norm=dual_norm if self.normalized else None)
        if self.scale == 1.0 or self.normalized:
            return found
        return Threshold(_finite(found / self.scale, self.lr), found.applies_to, found.provenance)

    @property
    def linear(self) -> Filter:
        """The gradients' filter."""
        if self.filter is not None or not self.momentum:
            return self.filter or identity()
        of_sum, of_average = (nesterov, nadam) if self.nesterov else (heavy_ball, ema)
        return (of_average if self.ema else of_sum)(self.momentum)


def require_lr(lr: Any, do: str | None = None) -> float:
    """A learning rate as a float; ArgumentError if it is no positive, finite number."""
    value = as_number(lr)
    if value is None or not 0.0 < value < math.inf:
        raise ArgumentError("lr must be positive and finite", got=shown(lr), do=do)
    return value


def _number(x: Any, name: str) -> float:
    """A float from a number or a 0-d array."""
    value = as_number(x)
    if value is None:
        raise ArgumentError(f"{name} must be a number", got=shown(x))
    return value


def _finite(value: float, lr: float) -> float:
    if not math.isfinite(value):
        raise ArgumentError("lr is too small: the threshold is beyond every float", got=shown(lr))
    return value
