"""The paper's own procedure (arXiv 2603.05002): Frank–Wolfe with open-loop steps and restarts.

A reference for comparisons: d ← (1 − γ)d + γ·lmo(Hd), γ = 2/(k + 2), from random starts. Each
restart costs ``iterations`` + 1 products.
"""

from __future__ import annotations

from geodiag.blocks import Blocks, axpy, dot, scale
from geodiag.core.validation import is_whole
from geodiag.errors import ArgumentError, shown
from geodiag.estimators.base import Measurement, Options, SharpnessEstimator
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.results import SharpnessResult, Status


class FrankWolfe(SharpnessEstimator):
    """Best of ``restarts`` Frank–Wolfe runs of ``iterations`` steps each; a lower bound.

    Only ``start`` and ``max_hvps`` (which ends the restarts early) change the procedure; it has no
    tolerance.

    Examples:
        >>> estimator = geodiag.estimators.FrankWolfe(iterations=5, restarts=2)
        >>> round(float(geodiag.sharpness(np.eye(3), "linf", estimator=estimator)), 6)
        3.0
    """

    def __init__(self, iterations: int = 50, restarts: int = 5) -> None:
        if not all(is_whole(n) and n >= 1 for n in (iterations, restarts)):
            raise ArgumentError(
                "FrankWolfe needs at least one iteration and one restart",
                got=f"iterations={shown(iterations)}, restarts={shown(restarts)}",
            )
        self.iterations, self.restarts = int(iterations), int(restarts)

    def estimate(
        self,
        oracle: Oracle,
        norm: Norm,
        start: Blocks | None = None,
        options: Options = Options(),
    ) -> SharpnessResult:
        full = self.restarts * (self.iterations + 1) + 1
        m = Measurement(oracle, norm, self, options, full)
        budget = options.max_hvps or full
        finals = []
        for restart in range(self.restarts):
            d = m.unit(start) if restart == 0 and start is not None else m.random()
            steps = min(self.iterations, m.left(budget) - 1)
            if steps < 1:
                break
            for k in range(steps):
                gamma = 2.0 / (k + 2.0)
                moved = axpy(gamma, norm.lmo(m.hvp(d)), scale(d, 1.0 - gamma))
                if not float(norm.value(moved)) > 0:  # Hd = 0, where any lmo will do: stay
                    break
                d = moved
            d = m.unit(d)
            finals.append((float(dot(d, m.hvp(d))), d))
            m.report(finals[-1][0])
        if not finals:  # a budget too small for one step and its value
            return m.finish(m.unit(start) if start is not None else m.random(), Status.BUDGET)
        values = [value for value, _ in finals]
        best, direction = max(finals, key=lambda pair: pair[0])
        return m.finish(
            direction,
            Status.COMPLETED if budget >= full else Status.BUDGET,
            history=tuple(values),
            spread=(best - min(values)) / abs(best) if best else 0.0,
        )

    def __repr__(self) -> str:
        return f"FrankWolfe(iterations={self.iterations}, restarts={self.restarts})"
