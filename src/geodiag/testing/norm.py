"""``check_norm``: whether it is a norm, and its LMO maximises over its unit ball."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from geodiag.blocks import Blocks, add, axpy, check_like, dot, scale, zeros_like
from geodiag.core.spaces import Space
from geodiag.errors import NormError
from geodiag.norms.base import Norm, QuadraticNorm, require_norm
from geodiag.testing import probes

LOCAL_STEPS = 60  # steps of the local search that tries to beat the LMO,
LOCAL_SEARCHES = 6  # at this many of the probed g


def check_norm(norm: Norm, example: Blocks, *, space: Space | None = None, seed: int = 0) -> None:
    """Check that ``norm`` is a norm and that its ``lmo`` and ``dual`` belong to it.

    Properties: answers of the right kind; ‖0‖ = 0 and ‖d‖ > 0 elsewhere; ‖cd‖ = |c|‖d‖; the
    triangle inequality; lmo(g) is in the unit ball, no direction that was tried has a larger
    ⟨g, d⟩/‖d‖, and ⟨g, lmo(g)⟩ = dual(g); lmo(cg) is as good as lmo(g); lmo(0) is feasible; inputs
    are not modified; equal questions get equal answers. A QuadraticNorm's metric must be symmetric,
    inverse to ``inverse_metric``, and agree with ``value``.

    Directions are random, with a fixed seed: passing is strong evidence, not a proof.

    Args:
        norm: the norm; it is bound to ``space`` first.
        example: blocks of any framework, at most a few hundred entries: names, shapes and dtype.
        space: names, shapes and matrix views, if tensors have more than two axes.
        seed: of the random directions.

    Raises:
        NormError: the property that fails, with the numbers.

    Examples:
        >>> from geodiag.testing import check_norm
        >>> check_norm(geodiag.norms.Spectral(), {"W": np.ones((3, 4)), "b": np.ones(3)})
    """
    example = probes.require_blocks(example, NormError)
    probes.require_seed(seed)
    space = space or Space.of(example)
    _Checker(require_norm(norm, "check_norm"), example, space, seed).run()


class _Checker:
    def __init__(self, norm: Norm, example: Blocks, space: Space, seed: int) -> None:
        self.given, self.norm = norm, norm.bind(space)
        self.example, self.space = example, space
        self.rng = np.random.default_rng(seed)
        self.tol = probes.rounding(space, example)

    def run(self) -> None:
        found = probes.directions(self.space, self.rng)
        if probes.largest(self.example) > 0.0:
            found.append(self.example)
        lengths = [self._value_of(d) for d in found]
        for d, length in zip(found, lengths, strict=True):
            self._homogeneity(d, length)
        at_zero = self.value(zeros_like(self.example))
        if at_zero != 0.0:
            raise self.fail("value(0) must be 0", f"{at_zero:.6g}", "remove the offset")
        self._triangle(found, lengths)
        for g in found:
            self._feasible(g)
        self._lmo_of_zero()
        units = [scale(d, 1.0 / length) for d, length in zip(found, lengths, strict=True)]
        for k, g in enumerate(found):
            self._optimal(g, units, search=k < LOCAL_SEARCHES)
        for g in found:
            self._dual_and_scale(g)
        if isinstance(self.norm, QuadraticNorm):
            self._quadratic(self.norm, found)

    def value(self, d: Blocks) -> float:
        return self._number(self.norm.value(d), "value(d)")

    def lmo(self, g: Blocks) -> Blocks:
        answer, what = self.norm.lmo(g), f"lmo(g) of {self.given!r}"
        check_like(answer, self.space.shapes, what, NormError)
        probes.check_arrays(answer, self.example, what, NormError)
        return answer

    def _number(self, x: Any, method: str) -> float:
        like = next(iter(self.example.values()))
        return probes.scalar(x, like, f"{method} of {self.given!r}", NormError)

    def fail(self, what: str, got: str, do: str) -> NormError:
        return NormError(f"{self.given!r}: {what}", got=got, do=do)

    def _value_of(self, d: Blocks) -> float:
        before = probes.host(d)
        first, second = self.value(d), self.value(d)
        self._unchanged(d, before, "value(d)")
        if first != second:
            raise self.fail(
                "value(d) is not deterministic", f"{first!r}, then {second!r}", "use no randomness"
            )
        if not first > 0.0:
            raise self.fail(
                "value(d) must be positive for d ≠ 0",
                f"{first:.6g} at a direction with largest entry {probes.largest(d):.3g}",
                "include every tensor, and return no signed quantity",
            )
        return first

    def _unchanged(self, d: Blocks, before: dict[str, Any], method: str) -> None:
        if not probes.same_bits(before, probes.host(d)):
            raise self.fail(
                f"{method} modifies its input in place", "other entries afterwards", "copy first"
            )

    def _homogeneity(self, d: Blocks, one: float) -> None:
        for c in (2.0, -1.0, 0.3, -7.0, 1e-3):
            scaled = self.value(scale(d, c))
            if abs(scaled - abs(c) * one) > self.tol * abs(c) * one:
                raise self.fail(
                    "value is not absolutely homogeneous: ‖c·d‖ must be |c|·‖d‖",
                    f"‖d‖ = {one:.6g}, ‖{c:g}·d‖ = {scaled:.6g}, expected {abs(c) * one:.6g}",
                    "take the root of a squared quantity, and absolute values of entries",
                )

    def _triangle(self, found: list[Blocks], lengths: list[float]) -> None:
        known = list(zip(found, lengths, strict=True))
        near = [axpy(1e-3, b, a) for a, b in itertools.pairwise(found)]
        pairs = list(itertools.combinations(known, 2))
        pairs += [(one, (b, self.value(b))) for one, b in zip(known, near, strict=False)]
        for (a, size_a), (b, size_b) in pairs:
            left, right = self.value(add(a, b)), size_a + size_b
            if left > right * (1.0 + self.tol):
                raise self.fail(
                    "value breaks the triangle inequality: ‖a + b‖ must be at most ‖a‖ + ‖b‖",
                    f"‖a‖ + ‖b‖ = {right:.6g}, ‖a + b‖ = {left:.6g}",
                    "a unit ball must be convex (ℓp with p < 1 is not a norm)",
                )

    def _feasible(self, g: Blocks) -> None:
        before = probes.host(g)
        answer, again = self.lmo(g), self.lmo(g)
        self._unchanged(g, before, "lmo(g)")
        if not probes.same_bits(probes.host(answer), probes.host(again)):
            raise self.fail("lmo(g) is not deterministic", "two answers", "use no randomness")
        length = self.value(answer)
        if length > 1.0 + self.tol:
            raise self.fail(
                "lmo(g) leaves the unit ball: ‖lmo(g)‖ must be at most 1",
                f"‖lmo(g)‖ = {length:.9g}",
                "maximise ⟨g, d⟩ over value(d) ≤ 1",
            )

    def _lmo_of_zero(self) -> None:
        length = self.value(self.lmo(zeros_like(self.example)))
        if length > 1.0 + self.tol:
            raise self.fail(
                "lmo(0) must be a finite point of the unit ball",
                f"‖lmo(0)‖ = {length:.6g}",
                "return zeros where g = 0",
            )

    def _optimal(self, g: Blocks, units: list[Blocks], search: bool) -> None:
        """No direction may be better than the LMO: probes, LMOs of others, a local search."""
        answer = self.lmo(g)
        reached = float(dot(g, answer))
        # Σ|d_i|: the rounding of ⟨g, d⟩ per unit of max |g_i|.
        terms = sum(float(abs(x).sum()) for x in probes.host(answer).values())
        slack = self.tol * max(abs(reached), probes.largest(g) * terms)
        candidates = [answer, g, *(self.lmo(axpy(0.3, d, g)) for d in units[:4])]
        parts = [self.lmo(zeros_like(g) | {name: x}) for name, x in g.items()]
        together = parts[0]
        for part in parts[1:]:
            together = add(together, part)
        candidates += [*parts, together]
        # |⟨g, d⟩|: the better of d and −d.
        scored = [
            (abs(float(dot(g, d))) / self.value(d), d)
            for d in candidates
            if probes.largest(d) > 0.0
        ]
        scored += [(abs(float(dot(g, d))), d) for d in units]
        best, start = max(scored, key=lambda pair: pair[0])
        if search and best <= reached + slack:
            best = self._local_search(g, start, best, reached + slack)
        if best > reached + slack:
            raise self.fail(
                "lmo(g) does not maximise ⟨g, d⟩ over the unit ball",
                f"⟨g, lmo(g)⟩ = {reached:.9g}, and ⟨g, d⟩/‖d‖ = {best:.9g} at another direction d",
                "check its sign, its scale, and that it belongs to this norm and to all tensors",
            )

    def _local_search(self, g: Blocks, d: Blocks, best: float, target: float) -> float:
        """Random local search; ⟨g, d⟩/‖d‖ is quasi-concave, so it has no other local maxima."""
        d = scale(d, 1.0 / self.value(d))
        step = 0.5
        for k in range(LOCAL_STEPS):
            move = self._move(k)
            for sign in (1.0, -1.0):
                trial = axpy(sign * step / self.value(move), move, d)
                length = self.value(trial)
                score = abs(float(dot(g, trial))) / length if length > 0.0 else 0.0
                if score > best:
                    best, d = score, scale(trial, 1.0 / length)
                    break
            else:
                step *= 0.85
            if best > target:
                break
        return best

    def _move(self, k: int) -> Blocks:
        if k % 2:
            return self.space.random(self.rng)
        names = [n for n in self.space.names if self.space.size_of(n)]
        name = names[int(self.rng.integers(len(names)))]
        return probes.coordinate(self.space, name, int(self.rng.integers(self.space.size_of(name))))

    def _dual_and_scale(self, g: Blocks) -> None:
        reached = float(dot(g, self.lmo(g)))
        dual = self._number(self.norm.dual(g), "dual(g)")
        if abs(dual - reached) > self.tol * abs(reached):
            raise self.fail(
                "dual(g) must equal ⟨g, lmo(g)⟩",
                f"dual(g) = {dual:.9g}, ⟨g, lmo(g)⟩ = {reached:.9g}",
                "correct dual, or leave it out: the default is ⟨g, lmo(g)⟩",
            )
        for c in (1e-3, 50.0):
            scaled = float(dot(g, self.lmo(scale(g, c))))
            if abs(scaled - reached) > self.tol * abs(reached):
                raise self.fail(
                    "lmo(c·g) must be as good as lmo(g) for c > 0",
                    f"⟨g, lmo(g)⟩ = {reached:.9g}, ⟨g, lmo({c:g}·g)⟩ = {scaled:.9g}",
                    "normalise g by itself, without absolute thresholds",
                )

    def _quadratic(self, norm: QuadraticNorm, found: list[Blocks]) -> None:
        do = "let value² = ⟨d, metric(d)⟩, with a symmetric metric, inverse to inverse_metric"
        for a, b in itertools.pairwise(found):
            pa, pb = norm.metric(a), norm.metric(b)
            sizes = (self.value(a), self.value(b))
            left, right = float(dot(pa, b)), float(dot(a, pb))
            if abs(left - right) > self.tol * sizes[0] * sizes[1]:
                got = f"⟨Pa, b⟩ = {left:.9g}, ⟨a, Pb⟩ = {right:.9g}"
                raise self.fail("metric is not symmetric", got, do)
            square = float(dot(a, pa))
            if abs(square - sizes[0] ** 2) > self.tol * square:
                got = f"value² = {sizes[0] ** 2:.9g}, ⟨d, metric(d)⟩ = {square:.9g}"
                raise self.fail("value does not belong to metric", got, do)
            back = axpy(-1.0, a, norm.inverse_metric(pa))
            if self.value(back) > np.sqrt(self.tol) * sizes[0]:  # an ill-conditioned P is allowed
                got = f"‖P⁻¹Pd − d‖ = {self.value(back):.3g} at ‖d‖ = {sizes[0]:.3g}"
                raise self.fail("inverse_metric is not the inverse of metric", got, do)
