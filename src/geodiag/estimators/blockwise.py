"""Blockwise, for sums of norms: part by part, then jointly.

The unit ball of a sum of norms is the convex hull of the parts' balls. If H ⪰ 0 the maximum is at
an extreme point, which is zero in all parts but one, so S is the largest of the parts' own
sharpnesses. If H is indefinite mixed directions can be better: a joint ascent starts from the
parts' maximisers.
"""

from __future__ import annotations

from dataclasses import replace

from geodiag.blocks import Blocks, scale, zeros_like
from geodiag.core.spaces import Space
from geodiag.errors import NormError
from geodiag.estimators.ascent import Ascent, budget_from_here
from geodiag.estimators.base import Measurement, Options, SharpnessEstimator
from geodiag.estimators.enumerate import Enumerate
from geodiag.estimators.lanczos import Lanczos
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.norms.joint import Part, SumJoint
from geodiag.norms.stacked import SlicedNorm
from geodiag.oracles.base import Oracle
from geodiag.oracles.wrappers import SlicedOracle
from geodiag.results import SharpnessResult, Status, WarmStart
from geodiag.solvers.restriction import Restriction

QUADRATIC_SHARE, SHARE = 3, 6


def choose(norm: Norm, space: Space) -> SharpnessEstimator:
    """``estimator="auto"``: by what a norm bound to ``space`` is, never by its name.

    Examples:
        >>> space = geodiag.problem(np.eye(100)).at().space
        >>> geodiag.estimators.choose(geodiag.norms.L2().bind(space), space)
        Lanczos()
        >>> geodiag.estimators.choose(geodiag.norms.Linf().bind(space), space)
        Ascent()
    """
    if isinstance(norm, QuadraticNorm):
        return Lanczos()
    if Enumerate.takes(norm, space):
        return Enumerate()
    whole = norm.norm if isinstance(norm, SlicedNorm) else norm
    return Blockwise() if isinstance(whole, SumJoint) else Ascent()


class Blockwise(SharpnessEstimator):
    """The parts' own sharpnesses, then a joint ascent from the best of them; a lower bound.

    With too few products for every part it is a joint ascent alone.

    It is S itself if H ⪰ 0 and every part was solved exactly, which is not checked.

    Examples:
        >>> shapes, estimator = {"a": (1,), "b": (1,)}, geodiag.estimators.Blockwise()
        >>> H = np.diag([2.0, 3.0])
        >>> round(float(geodiag.sharpness(H, "block", shapes=shapes, estimator=estimator)), 6)
        3.0
    """

    # The joint ascent starts from this many parts.
    joint_starts = 3

    def estimate(
        self,
        oracle: Oracle,
        norm: Norm,
        start: Blocks | None = None,
        options: Options = Options(),
    ) -> SharpnessResult:
        if isinstance(norm, SlicedNorm):
            return self._of_slices(oracle, norm, start, options)
        if not isinstance(norm, SumJoint):
            raise NormError(
                f"Blockwise needs a sum of norms, and {norm!r} is not one",
                do='use estimator="auto", or Ascent()',
            )
        share = None
        if options.max_hvps is not None:
            share = (options.max_hvps - 2 * self.joint_starts) // len(norm.parts)
            if share < max(map(_least_share, norm.parts)):
                whole = Ascent().estimate(oracle, norm, start, options)
                return replace(whole, estimator=repr(self))
        m = Measurement(oracle, norm, self, options)
        found = []
        notes: dict[str, None] = {}  # in order, each once
        for part in norm.parts:
            inner = Restriction(part.names)(m.oracle)
            own = replace(options, max_hvps=share, progress=False)  # reported below, to scale
            result = choose(part.norm, inner.space).estimate(inner, part.norm, options=own)
            full = zeros_like(m.gradient) | scale(result.direction, part.radius)
            found.append((result.value * part.radius**2, full, result.status))
            notes |= dict.fromkeys(n for n in result.notes if n not in oracle.notes)
            m.report(max(value for value, _, _ in found))
        found.sort(key=lambda each: -each[0])
        starts = [direction for _, direction, _ in found[: self.joint_starts]]
        if start is not None:
            starts.insert(0, m.unit(start))
        joint = Ascent().climb(m, starts, budget_from_here(m))
        status = max((s for _, _, s in found), key=_severity)
        if not joint.converged:
            status = Status.BUDGET
        return replace(joint.finish(m, notes=tuple(notes)), status=status)

    def _of_slices(
        self, oracle: Oracle, norm: SlicedNorm, start: Blocks | None, options: Options
    ) -> SharpnessResult:
        slices = norm.slices
        first = None if start is None else slices.split(start)
        found = self.estimate(SlicedOracle(oracle, slices), norm.norm, first, options)
        state = WarmStart.from_dict(found.state)
        state = replace(state, witness=slices.join(dict(state.witness)), norm=repr(norm))
        direction = slices.join(found.direction)
        return replace(found, direction=direction, norm=repr(norm), state=state.to_dict())


def _least_share(part: Part) -> int:
    """Products with which a part's own search finds more than a joint ascent does."""
    return QUADRATIC_SHARE if isinstance(part.norm, QuadraticNorm) else SHARE


def _severity(status: Status) -> int:
    return [Status.ENUMERATED, Status.CONVERGED, Status.PRECISION, Status.BUDGET].index(status)
