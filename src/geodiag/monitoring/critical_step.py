"""The critical step of each record of a run: each search begins where the last one ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from geodiag.blocks import Blocks, axpy, subtract
from geodiag.core.root_bracketing import NEAR, Earlier
from geodiag.critical_lr import CriticalLR, from_step
from geodiag.errors import shown
from geodiag.monitoring.without_sharpness import Realized
from geodiag.oracles.base import Oracle

MOST_LOSSES = 12  # L(w⁺) is one of them


class CriticalSteps:
    """The searches of a run, and what the last one has found."""

    def __init__(self) -> None:
        self._found: list[float] = []  # the critical rate, or multiple of a step without a rate
        self._of_rates, self._rate = True, 1.0

    def search(
        self,
        oracle: Oracle,
        here: Blocks,
        there: Blocks,
        losses: tuple[float, float],
        found: Realized,
        lr: float,
    ) -> CriticalLR | None:
        """None if the step does not descend. ``lr``: NaN where it is not known."""
        after, before = losses
        if not (math.isfinite(before) and found.slope < 0.0):
            return None  # the notes of ``found`` say why
        s, known = subtract(there, here), lr > 0.0
        if known is not self._of_rates:
            self._found, self._of_rates = [], known
        answer = from_step(
            lambda alpha: float(oracle.loss_at(axpy(alpha, s, here))) - before,
            found.slope,
            after - before,
            found.bend,
            found.noise,
            lr if known else None,
            most=MOST_LOSSES,
            earlier=self._expected(lr if known else 1.0),
        )
        if answer.bracketed:
            self._found = [float(answer)]
            self._rate = answer.rate if answer.rate > 0.0 else 1.0
        return answer

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"found": [*self._found], "of_rates": self._of_rates, "rate": self._rate}

    @classmethod
    def loaded(cls, state: Mapping[str, Any]) -> CriticalSteps:
        """With that state. ``LookupError``, ``TypeError``, ``ValueError``: it is none."""
        steps = cls()
        if state:
            steps._found = [float(x) for x in state["found"]][-1:]
            steps._of_rates, steps._rate = bool(state["of_rates"]), float(state["rate"])
        if not all(0.0 < x < math.inf for x in (*steps._found, steps._rate)):
            raise ValueError(f"critical steps {shown(state)}")
        return steps

    def _expected(self, lr: float) -> Earlier | None:
        """Where the next is expected; None near the edge, where 1/ζ is better, or at first."""
        factor = self._found[-1] / lr if self._found else 0.0
        return Earlier(factor, self._rate) if NEAR < factor < math.inf else None
