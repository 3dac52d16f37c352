"""Clipping of the gradient by its norm, as ``clip_norm=`` states it where no step shows it.

A training that shortens gradients longer than c to c takes a step by c/‖g‖ of the gradient, so the
threshold is that of a rate as much smaller: 2‖g‖/(ηc) for plain descent. What the optimizer
received shows it if it is a multiple of the measured loss's gradient g. If it is another one, as on
other data or inside of the step, c and g say what is shown by none: with g for the gradient that
was clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from geodiag.core.validation import as_number
from geodiag.errors import ArgumentError, shown
from geodiag.optimizers.comparison import TOLERANCE, UNKNOWN_GRADIENT, Comparison, follow
from geodiag.optimizers.thresholds import Update

STATED = "where the gradient is clipped, the threshold is of that, as clip_norm= states"
LASTING = ", as if that factor lasted"
CONTRADICTED = (
    "clip_norm= is not what happens: the optimizer received a longer gradient, and the threshold "
    "is of the step that it took"
)
NOT_WHOLE = "clip_norm= is of the gradient of all parameters, of which only a part is measured"
NOT_FINITE = "what clip_norm= makes of a gradient that is not finite is not known"
TWICE = "clip_norm= and the scale of update= both state what becomes of the gradient"


def require_clip_norm(given: Any, update: Any = None) -> float | None:
    """``clip_norm=`` of a Monitor with this ``update=``, as a float.

    Raises:
        ArgumentError: it is no positive and finite number, or the rule states a scale besides.
    """
    if given is None:
        return None
    limit = as_number(given)
    if limit is None or not 0.0 < limit < math.inf:
        raise ArgumentError(
            "clip_norm= must be positive and finite: the largest gradient norm",
            got=shown(given),
            do="leave it out where the training does not clip",
        )
    if isinstance(update, Update) and update.scale != 1.0:
        raise ArgumentError(TWICE, got=f"scale={update.scale:g}", do="pass one of them")
    return limit


@dataclass(frozen=True)
class Received:
    """The lengths of what optimizers received at a step, where that is known.

    Attributes:
        longest: the longest of their gradients.
        whole: of all of them together.
        measured: of the measured parameters.
    """

    longest: float
    whole: float
    measured: float


@dataclass(frozen=True)
class Clipping:
    """Clipping at ``limit``, at one step.

    Attributes:
        limit: c.
        length: ‖g‖ of the measured loss.
        is_whole: whether that is of all parameters that are trained.
        received: what the optimizers received; None where it is not known.
    """

    limit: float
    length: float
    is_whole: bool = True
    received: Received | None = None

    @property
    def factor(self) -> float:
        """What clipping multiplies g with."""
        now = self.limit if self.received is None else min(self.limit, self.received.measured)
        return now / self.length if self.length > now else 1.0

    def of_stated(self, rule: Update) -> Update:
        """A rule that was compared with no step: clipped before the optimizer, or inside of it."""
        if rule.unknown or rule.normalized:
            return rule
        if rule.scale != 1.0 or not math.isfinite(self.length):
            return replace(rule, unknown=NOT_FINITE if rule.scale == 1.0 else TWICE)
        found = self.received
        if found is not None and found.longest > (1 + TOLERANCE) * self.limit:
            return self._scaled(rule, self.limit / found.longest)
        return self._unseen(rule)

    def follow(
        self, rule: Update, said: Comparison, again: Callable[[float], Comparison] | None = None
    ) -> Update:
        """:func:`geodiag.optimizers.comparison.follow`, where what was ``said`` shows no clipping.

        ``again``: the same comparison, with so many times the measured loss's gradient.
        """
        if not (rule.normalized or math.isfinite(self.length)):
            return replace(rule, unknown=rule.unknown or NOT_FINITE)
        longest = said.scale * self.length if self.received is None else self.received.longest
        shown = said.seen and not said.unknown
        if (self.received is not None or shown) and longest > (1 + TOLERANCE) * self.limit:
            said = said._replace(caveat="; ".join(filter(None, (said.caveat, CONTRADICTED))))
            return follow(rule, said)
        if rule.normalized or shown:
            return follow(rule, said)
        if said.unknown and said.seen and again is not None and self.is_whole and self.factor < 1.0:
            clipped = again(self.factor)
            if not clipped.unknown:
                return self._scaled(follow(rule, clipped), self.factor)
        if said.unknown == UNKNOWN_GRADIENT and not said.seen:
            said = said._replace(unknown="")
        return self._unseen(follow(rule, said))

    def _unseen(self, rule: Update) -> Update:
        """The rule by the lengths alone."""
        if rule.unknown or rule.normalized:
            return rule
        found = self.received
        if found is None and not self.is_whole:
            return replace(rule, unknown=NOT_WHOLE)
        longest = self.length if found is None else found.whole
        return rule if longest < (1 - TOLERANCE) * self.limit else self._scaled(rule, self.factor)

    def _scaled(self, rule: Update, factor: float) -> Update:
        text = STATED + (LASTING if rule.momentum or rule.filter else "")
        caveat = "; ".join(filter(None, (rule.caveat, text)))
        return replace(rule, scale=rule.scale * factor, caveat=caveat)
