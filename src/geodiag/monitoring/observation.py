"""One measurement of a run, before and after a step. Every failure becomes a note of the record.

The point is copied, because the optimizer may update the parameters in place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from geodiag.blocks import Array, Blocks, all_finite, to_numpy
from geodiag.core.quantity import Quantity
from geodiag.core.validation import own_arithmetic
from geodiag.errors import StaleOracle, cut, one_line, printable
from geodiag.estimators.roundoff import coarsest
from geodiag.monitoring.critical_step import CriticalSteps
from geodiag.monitoring.parts import ONCE, Part, PartTrackers, compare_parts, measure_parts
from geodiag.monitoring.rounding import note_at_point, smoothness
from geodiag.monitoring.sharpness_tracker import SharpnessTracker
from geodiag.monitoring.step_curvature import StepCurvature
from geodiag.monitoring.unmeasured import changed, copied, listed
from geodiag.monitoring.without_sharpness import LossNoise, Realized, realized
from geodiag.norms import L2
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.optimizers.thresholds import Update
from geodiag.oracles import CountingOracle, Oracle, Problem
from geodiag.plugins.guard import Blaming
from geodiag.records import BUILT_IN, Record
from geodiag.results import Bound, SharpnessResult

LONGEST_NOTE = 4000  # characters


@dataclass
class Observation:
    """A measurement in progress: what :attr:`Quantity.measure` is called with, after the step.

    What could not be measured is None, or missing in ``known``.

    Attributes:
        step: the number of the step.
        problem: the problem that is measured.
        quantities: those with a function of their own, from plugins or built in.
        known: fields of the Record by name, so far: ``loss``, ``dual_norm``, ``threshold`` and so
            on.
        extras: values of the quantities that are no fields.
        notes: what failed, what is not known, and why.
        seconds: spent so far.
        norm: the norm, bound to the parameters.
        here: a copy of the point w before the step.
        there: the point w⁺ after it; where it is known, it is not copied again.
        oracle: the problem at w; it counts Hessian-vector products.
        new_loss: L(w⁺).
        tracker: of S along the run.
        result: the sharpness at w, with its witness.
        rest: copies of the tensors that are not measured, and that the step may move.
        process: the process that measured it.
        descent: −2⟨∇L, s⟩/‖s‖² along the step s.
        noise: what is known of the rounding of losses, where S is not measured; else None.
        critical: the searches for the critical step so far; None where there are none.
        parts: by name, where the step has several geometries.
    """

    step: int
    problem: Problem
    quantities: Sequence[Quantity] = ()
    known: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    norm: Norm | None = None
    here: Blocks | None = None
    there: Blocks | None = None
    oracle: CountingOracle | None = None
    new_loss: float = math.nan
    tracker: SharpnessTracker | None = None
    result: SharpnessResult | None = None
    rest: Mapping[str, Array] = field(default_factory=dict)
    process: int = field(default_factory=os.getpid)
    descent: float = math.nan
    noise: LossNoise | None = None
    critical: CriticalSteps | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in self.quantities:
            if each.name not in BUILT_IN:
                self.extras[each.name] = each.default

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """An exception in the ``with`` block ends the block and becomes a note."""
        try:
            yield
        except Exception as e:
            self.note(f"{what}: {one_line(e)}")

    def note(self, text: str) -> None:
        """Add to the record's note, once."""
        text = printable(" ".join(text.split()))
        if text and text not in self.notes:
            self.notes.append(text)

    def record(self) -> Record:
        """The record of what is known."""
        S, limit = self.known.get("sharpness", math.nan), self.known.get("threshold", math.nan)
        if S:
            self.known["occupation"] = self.known.get("curvature", math.nan) / S
        self.known["timing"] = self.descent / limit
        return Record(
            self.step,
            **self.known,
            num_hvps=0 if self.oracle is None else self.oracle.num_hvps,
            seconds=self.seconds,
            note=cut("; ".join(self.notes), LONGEST_NOTE),
            extras=self.extras,
        )

    def copy(self, params: Any, rest: Mapping[str, Array]) -> None:
        """Copy the point, and the ``rest``, which is not measured."""
        self.here, self.rest = self.problem.snapshot(params), copied(rest)

    def freeze(self, params: Any) -> None:
        """Make the oracle at the point, and evaluate the loss there."""
        assert self.here is not None
        whole = isinstance(params, Mapping) and set(params) == set(self.here)
        # The copy holds the measured tensors only; the others must come from ``params``.
        self.oracle = self._oracle(self.here if params is None or whole else params)
        with self.noting("the loss"):
            self.known["loss"] = float(self.oracle.loss())

    def _oracle(self, params: Any) -> CountingOracle:
        oracle = CountingOracle(self.problem.at(params))
        if self.noise is not None:
            oracle.spare()
        return oracle

    def measure_parts(self, parts: Mapping[str, Part], trackers: PartTrackers) -> list[str]:
        """Measure S of each part; D is in ℓ2 then. Returns what is to be noted once."""
        assert self.oracle is not None
        self.parts, self.norm = parts, L2().bind(self.oracle.space)
        reasons, notes = measure_parts(self.oracle, parts, self.extras, trackers)
        for reason in reasons:
            self.note(reason)
        return [ONCE, *notes]

    def measure(self, asked: Norm, tracker: SharpnessTracker) -> SharpnessResult | None:
        """Measure S and ‖g‖*. Returns the result, or None if it failed."""
        assert self.oracle is not None
        self.norm, self.tracker = asked.bind(self.oracle.space), tracker
        self.result = self._measure(asked, tracker)
        with self.noting("the rounding errors"), own_arithmetic():
            of_sharpness = None if self.result is None else self.result.rounding
            self.note(note_at_point(self.oracle, self.norm, self.known, of_sharpness))
        return self.result

    def _measure(self, asked: Norm, tracker: SharpnessTracker) -> SharpnessResult | None:
        assert self.oracle is not None
        assert self.norm is not None
        result = None
        with self.noting("the sharpness"):
            result = tracker.measure(self.oracle, asked, self.norm)
        if result is not None:
            self.known["status"] = result.status.name
        if result is None or result.status.failed:
            self.note("" if result is None else "; ".join(result.notes))
            with self.noting("the dual norm"):
                gradient = self.oracle.gradient()
                if bool(all_finite(gradient)):
                    self.known["dual_norm"] = float(self.norm.dual(gradient))
            return None
        self.known |= {
            "sharpness": result.value,
            "bound": result.bound.name,
            "dual_norm": result.dual_norm,
        }
        if result.upper is not None:
            self.known["upper"] = float(result.upper)
        return result

    def compare(self, update: Update | None) -> None:
        """The threshold of the update rule, and the ratio S/threshold."""
        if update is None:
            self.note("no threshold: neither lr= nor update= was given")
            return
        self.known["lr"] = float(update.lr)
        if self.noise is not None:
            if self.norm is None:
                return  # a threshold is on S in a norm
            if update.normalized and self.oracle is not None:
                self.known["dual_norm"] = float(self.norm.dual(self.oracle.gradient()))
        reasons, notes = compare_parts(self.parts, self.extras)
        for text in (*reasons, *notes):
            self.note(text)
        reason = self._no_threshold(update)
        if reason:
            self.note(f"no threshold: {reason}")
            return
        edge = update.threshold(self.known.get("dual_norm"))
        if edge != edge or edge <= 0:
            why = edge.provenance if edge != edge else f"it would be {float(edge):.3g}, not above 0"
            self.note(f"no threshold: {why}")
            return
        self.known["threshold"] = float(edge)
        self.known["ratio"] = self.known.get("sharpness", math.nan) / edge

    def moved_besides(self, rest: Mapping[str, Array]) -> list[str]:
        """The names of those in ``rest`` that the step has moved, on any process."""
        if not self.rest:
            return []
        moved = changed(self.rest, rest)
        return moved or ["another rank's"] if self.problem.anywhere(bool(moved)) else []

    def measure_step(self, params: Any, besides: Sequence[str] = ()) -> None:
        """D and the curvature along the step, from the frozen point to ``params``.

        There are none where the step moved others ``besides``: they are of the whole step.
        """
        if self.here is None or self.oracle is None or (self.norm is None and self.noise is None):
            return
        self.there = self.problem.point(params) if self.there is None else self.there
        if besides:
            self.note(f"no D, no ζ: the step also moved {listed(besides)}, which is not measured")
            return
        try:
            self._along(self.there)
        except StaleOracle:
            # A buffer, the mode, or a tensor that is not measured has changed with the step.
            self.note("D is with buffers and unmeasured tensors as they were after the step")
            self.oracle.inner = self._oracle(self.here).inner
            self._along(self.there)

    def measure_quantities(self) -> None:
        """Measure the quantities that have a function of their own."""
        for each in self.quantities:
            assert each.measure is not None
            values = self.known if each.name in BUILT_IN else self.extras
            with self.noting(each.name), Blaming("its measure= failed", each.name, (Exception,)):
                values[each.name] = each.kind(each.measure(self))

    def _along(self, there: Blocks) -> None:
        assert self.here is not None
        assert self.oracle is not None
        with own_arithmetic():
            exact = self.oracle.in_float32() or self.oracle
        if self.noise is not None:
            losses = self._losses(exact, there)
            with own_arithmetic():
                found = realized(exact, self.norm, self.here, there, losses, self.noise)
            self.oracle.num_hvps = exact.num_hvps
            self._take(exact, found, there, losses)
            return
        assert self.norm is not None
        program = StepCurvature(self.norm)
        with own_arithmetic():
            stepped = self.oracle.run(program, self.here, there, self.oracle.gradient())
            if not bool(all_finite(stepped.image)) and self.oracle.use_differences():
                stepped = self.oracle.run(program, self.here, there, self.oracle.gradient())
        length = float(stepped.numbers[0])
        if not 0 < length < math.inf:
            self.note("the step was zero" if length == 0 else "the step is not finite")
            return
        losses = self._losses(exact, there)
        with own_arithmetic():
            found = smoothness(self.oracle, exact, self.here, there, losses, stepped)
        self._take(exact, found, there, losses)
        if math.isfinite(found.curvature):
            self._better_witness(found.curvature, stepped.unit)

    def _losses(self, oracle: Oracle, there: Blocks) -> tuple[float, float]:
        """L(w⁺) and L(w)."""
        before, self.new_loss = float(oracle.loss()), float(oracle.loss_at(there))
        return self.new_loss, before

    def _take(
        self, oracle: Oracle, found: Realized, there: Blocks, losses: tuple[float, float]
    ) -> None:
        """What was found along the step, and the critical step."""
        for text in found.notes:
            self.note(text)
        self.descent = found.descent
        numbers = {
            "directional_smoothness": found.smoothness,
            "realized_edge": found.edge,
            "curvature": found.curvature,
        }
        self.known |= {name: x for name, x in numbers.items() if math.isfinite(x)}
        if self.critical is not None:
            with self.noting("the critical step"), own_arithmetic():
                self._critical(oracle, there, losses, found)

    def _critical(
        self, oracle: Oracle, there: Blocks, losses: tuple[float, float], found: Realized
    ) -> None:
        assert self.here is not None
        assert self.critical is not None
        lr = self.known.get("lr", math.nan)
        answer = self.critical.search(oracle, self.here, there, losses, found, lr)
        if answer is None:
            return
        self.known["critical_lr"] = float(answer)
        if answer.bracketed:
            self.known["critical_lr_error"] = 0.5 * (answer.bracket[1] - answer.bracket[0])
        if answer.note:
            self.note(f"no critical step: {answer.note}")
        elif answer.lr is None:
            self.note("the critical step is a multiple of the step: no learning rate is known")

    def _better_witness(self, curvature: float, unit: Blocks) -> None:
        """Make the step's direction the witness if its curvature exceeds S.

        It must do so by more than rounding, since the value of an EXACT result is the maximum.
        """
        assert self.oracle is not None
        if self.result is None or curvature <= self.result.value * (
            1 + coarsest(self.oracle, unit) ** 0.5
        ):
            return
        assert self.tracker is not None
        witness = {name: to_numpy(x) for name, x in unit.items()}
        self.result = replace(
            self.result,
            value=curvature,
            direction=unit,
            bound=Bound.LOWER,
            residual=None,
            state=self.result.state | {"witness": witness},
        )
        self.tracker.update(self.result)
        self.known |= {"sharpness": curvature, "bound": Bound.LOWER.name}
        if "threshold" in self.known:
            self.known["ratio"] = curvature / self.known["threshold"]

    def _no_threshold(self, update: Update) -> str:
        """Why none applies, for reasons unknown to :func:`geodiag.threshold`; "" if one may."""
        if update.unknown:
            return update.unknown
        if update.normalized:
            known = math.isfinite(self.known.get("dual_norm", math.nan))
            return "" if known else "it needs the dual norm of the gradient, which is not known"
        plain = self.norm is None or isinstance(self.norm, QuadraticNorm)
        if (update.momentum or update.weight_decay or update.filter) and not plain:
            return "with momentum or weight decay one is established in quadratic norms only"
        return ""
