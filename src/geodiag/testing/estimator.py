"""``check_estimator``: whether values are attained, bounds true and products counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geodiag.blocks import Blocks, dot, scale
from geodiag.errors import NonFiniteError, NormError, PluginError, shown
from geodiag.estimators.base import Options, SharpnessEstimator
from geodiag.norms.base import Norm
from geodiag.oracles.base import Oracle
from geodiag.oracles.dense import MatrixProblem
from geodiag.oracles.wrappers import CountingOracle
from geodiag.results import Bound, SharpnessResult, Status
from geodiag.testing import probes
from geodiag.testing.cases import Case, cases


def check_estimator(estimator: SharpnessEstimator, *, seed: int = 0) -> None:
    """Check ``estimator`` on small matrices whose sharpness is known, in every norm it accepts.

    Properties: value = ⟨d, Hd⟩ at the returned direction, ‖d‖ = 1; the value never exceeds S, and
    is S if the bound says EXACT; ``num_hvps`` is the number of products computed, and at most
    ``max_hvps``; ``loss`` is set; equal seeds give equal results; ``start=`` works; NaN raises
    NonFiniteError. A norm that the estimator refuses with a NormError is left out.

    Args:
        estimator: the estimator.
        seed: handed to it in its Options.

    Raises:
        PluginError: the property that fails, with the numbers.

    Examples:
        >>> from geodiag.testing import check_estimator
        >>> check_estimator(geodiag.estimators.Enumerate())
    """
    if not isinstance(estimator, SharpnessEstimator):
        raise PluginError(
            "check_estimator takes a SharpnessEstimator object",
            got=shown(estimator),
            do="pass an instance, e.g. MyEstimator()",
        )
    probes.require_seed(seed)
    taken = 0
    for case in cases():
        taken += _Run(estimator, case, seed).check()
    if not taken:
        raise PluginError(
            f"{estimator!r} refuses every norm",
            got="a NormError from each of l2, l1, linf, spectral, block and their compositions",
            do="accept at least one",
        )


@dataclass
class _Run:
    estimator: SharpnessEstimator
    case: Case
    seed: int

    def __post_init__(self) -> None:
        problem = MatrixProblem(self.case.H, self.case.shapes)
        self.oracle = problem.at()
        self.norm: Norm = self.case.norm.bind(self.oracle.space)
        self.size = float(np.abs(np.linalg.eigvalsh(self.case.H)).max())

    def estimate(
        self,
        start: Blocks | None = None,
        max_hvps: int | None = None,
        oracle: Oracle | None = None,
    ) -> SharpnessResult:
        options = Options(seed=self.seed, max_hvps=max_hvps)
        return self.estimator.estimate(oracle or self.oracle, self.norm, start, options)

    def check(self) -> bool:
        """Whether the estimator takes the norm."""
        counting = CountingOracle(self.oracle)
        try:
            first = self.estimate(oracle=counting)
        except NormError:
            return False
        self.contract(first, counting)
        self.deterministic(first)
        counting = CountingOracle(self.oracle)
        self.contract(self.estimate(start=first.direction, oracle=counting), counting)
        for budget in (2, 3, 7):
            counting = CountingOracle(self.oracle)
            self.contract(self.estimate(max_hvps=budget, oracle=counting), counting)
            if counting.num_hvps > budget:
                raise self.fail("max_hvps is not respected", f"{counting.num_hvps} of {budget}")
        self.not_a_number()
        return True

    def fail(self, what: str, got: str) -> PluginError:
        return PluginError(
            f"{self.estimator!r} on {self.case.label} in {self.norm!r}: {what}", got=got
        )

    def contract(self, result: SharpnessResult, counting: CountingOracle) -> None:
        if not isinstance(result, SharpnessResult):
            raise self.fail("must return a SharpnessResult", type(result).__name__)
        d = result.direction
        tol = probes.rounding(self.oracle.space, d)
        length = float(self.norm.value(d))
        if not abs(length - 1.0) <= tol:
            raise self.fail("the direction must have norm 1", f"‖d‖ = {length!r}")
        image = self.oracle.hvp(d)
        attained = float(dot(d, image))
        # The rounding of ⟨d, Hd⟩ is relative to ‖H‖·‖d‖₂², which may be far above the value.
        slack = tol * self.size * float(dot(d, d))
        if not abs(result.value - attained) <= slack:
            got = f"value {result.value!r}, ⟨d, Hd⟩ = {attained!r}"
            raise self.fail("the value is not ⟨d, Hd⟩ at the returned direction", got)
        if result.loss != float(self.oracle.loss()):
            raise self.fail("the result must hold the loss", f"loss = {result.loss!r}")
        self.claims(result, slack)
        if result.num_hvps != counting.num_hvps:
            got = f"num_hvps = {result.num_hvps}, really {counting.num_hvps}"
            raise self.fail("num_hvps does not count every product", got)

    def claims(self, result: SharpnessResult, slack: float) -> None:
        S = self.case.truth
        if result.value > S + slack:
            raise self.fail("the value exceeds the sharpness", f"{result.value!r}, S = {S!r}")
        # An EXACT value may be off by its residual, relative to itself.
        off = (result.residual or 0.0) * abs(result.value) + slack
        if result.bound is Bound.EXACT and result.value < S - off:
            got = f"{result.value!r}, S = {S!r}, residual {result.residual}"
            raise self.fail("the bound says EXACT, and the value is not the sharpness", got)
        if result.upper is not None and result.upper < S - slack:
            raise self.fail("upper is below the sharpness", f"{result.upper!r}, S = {S!r}")
        if not isinstance(result.status, Status) or result.status.failed:
            raise self.fail("a finite problem must not end in failure", str(result.status))

    def deterministic(self, first: SharpnessResult) -> None:
        again = self.estimate()
        same = probes.same_bits(probes.host(first.direction), probes.host(again.direction))
        if again.value != first.value or not same:
            got = f"{first.value!r}, then {again.value!r}"
            raise self.fail("equal seeds give different results", got)

    def not_a_number(self) -> None:
        with np.errstate(all="ignore"):
            try:
                result = self.estimate(oracle=_NaN(self.oracle))
            except NonFiniteError:
                return
            except Exception as e:
                raise self.fail("NaN must raise NonFiniteError", f"{type(e).__name__}: {e}") from e
        raise self.fail("NaN must raise NonFiniteError", f"{result!r}")


class _NaN(CountingOracle):
    """A finite loss and gradient, and products that are NaN."""

    def hvp(self, d: Blocks) -> Blocks:
        return scale(super().hvp(d), math.nan)

    def hvps(self, ds: Blocks) -> Blocks:
        return scale(super().hvps(ds), math.nan)
