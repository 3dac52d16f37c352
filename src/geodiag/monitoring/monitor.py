"""The Monitor: at chosen steps of a run, how far it is from its edge of stability.

A measurement has two halves around one step of the optimizer: :meth:`Monitor.before` measures S,
the loss and the gradient at w, and :meth:`Monitor.after` measures along the step w⁺ − w that was
taken. A failure is written into the record and never reaches the training loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from geodiag.blocks import norm2
from geodiag.certificates.certificate import require_envelope
from geodiag.core.validation import is_true, require_flag, whole_step
from geodiag.errors import one_line
from geodiag.estimators import Options, SharpnessEstimator
from geodiag.monitoring.critical_step import CriticalSteps
from geodiag.monitoring.display import DisplayedRun
from geodiag.monitoring.observation import Observation
from geodiag.monitoring.parts import Part, PartTrackers
from geodiag.monitoring.rules import check_rule, rule_at
from geodiag.monitoring.run_header import rule_values, run_header
from geodiag.monitoring.run_log import RunLog, try_to_close
from geodiag.monitoring.schedule import Schedule
from geodiag.monitoring.sharpness_tracker import SharpnessTracker
from geodiag.monitoring.states import loaded
from geodiag.monitoring.warn_once import WarnOnce
from geodiag.monitoring.without_sharpness import LossNoise, norm_of_step
from geodiag.norms.base import Norm
from geodiag.optimizers.clipping import Clipping, require_clip_norm
from geodiag.optimizers.thresholds import Update
from geodiag.problems import NormLike, current_norm, norm_source, problem
from geodiag.records import Record, new_run, quantities
from geodiag.sharpness import named_estimator
from geodiag.sinks import Log, as_sinks


class Monitor(DisplayedRun):
    """Measures a run at chosen steps, and records it.

    Quantities of plugins (``geodiag_quantities``) are measured with the built-in ones.

        with geodiag.Monitor(model, "spectral", lr=0.1, log="run.jsonl", **problem) as monitor:
            for step in range(steps):
                if monitor.due(step):
                    monitor.before(step)
                ...                             # one step of the optimizer
                monitor.after()

    Args:
        model: as in :func:`geodiag.sharpness`; a Problem is not closed with the monitor.
        norm: a registered name, a Norm, or a function without arguments that returns a Norm, called
            at each measurement (preconditioners that change along the run). With
            ``sharpness=False`` it may be None; then there is no D.
        lr: the learning rate of the plain update −lr·‖g‖*·lmo(g), or a function of the step.
        update: instead of ``lr``: an :class:`Update`, or a function of the step that returns one.
            With neither, threshold and ratio are NaN.
        every: measure each so many steps, or where a function of the step says so.
        budget: the share, in (0, 1), of the time since the first measurement began that all
            measurements may take; it is kept within a factor of 1.5. ``every`` is then the least
            number of steps between two of them.
        log: a path (``.jsonl``, ``.csv``), a :class:`geodiag.sinks.Sink`, a function of a Record,
            or a list of these. If several ranks measure together, the first one writes. In a file
            that exists another run begins; see :func:`geodiag.read_runs`.
        mode: "a": append to the file of ``log``; "w": empty it before the first record.
        estimator: as in :func:`geodiag.sharpness`.
        max_hvps: the largest number of Hessian-vector products of one measurement.
        rtol: the relative tolerance, as there; by default 0.02 in quadratic norms. There it is for
            the residual; the relative error of S is of the order of its square, 4e-4, if the
            eigenvalue is isolated.
        certificate: whether to compute an upper bound on S.
        sharpness: False: records have no S, but ζ, D and the curvature along the step where
            rounding leaves ζ open: two or three forward passes, one gradient, and no
            Hessian-vector product, or one. It needs neither a norm nor second derivatives.
        critical: whether records have the critical learning rate, by further forward passes.
        clip_norm: c, where the training shortens a gradient whose ℓ2 norm is larger to c, and no
            step shows it: the threshold is then of that step, 2‖g‖/(ηc) for plain descent.
        seed: of the random starts.
        **problem_arguments: those of :func:`geodiag.problem`.

    Attributes:
        records: every Record so far.
        run: the id of the run, which its records carry.

    Raises:
        GeodiagError: an argument cannot be used. Later on nothing is raised: failures are in the
            records' notes, and those of a sink one warning.

    Examples:
        >>> H, w = np.diag([18.0, 4.0]), {"x": np.ones(2)}
        >>> with geodiag.Monitor(H, lr=0.1, every=2) as monitor:
        ...     for step in range(4):
        ...         new = {"x": w["x"] - 0.1 * H @ w["x"]}
        ...         _ = monitor.observe(step, w, new)
        ...         w = new
        >>> [(r.step, round(r.ratio, 4)) for r in monitor.records]  # S = 18, and 2/lr = 20
        [(0, 0.9), (2, 0.9)]
    """

    def __init__(
        self,
        model: Any,
        norm: NormLike = "l2",
        *,
        lr: float | Callable[[int], float] | None = None,
        update: Update | Callable[[int], Update] | None = None,
        every: int | Callable[[int], bool] = 10,
        budget: float | None = None,
        log: Log = None,
        mode: str = "a",
        estimator: SharpnessEstimator | str = "auto",
        max_hvps: int | None = None,
        rtol: float | None = None,
        certificate: bool = False,
        sharpness: bool = True,
        critical: bool = False,
        clip_norm: float | None = None,
        seed: int = 0,
        **problem_arguments: Any,
    ) -> None:
        options = Options(rtol=rtol, max_hvps=max_hvps, seed=seed)
        check_rule(lr, update)
        self._clip_norm = require_clip_norm(clip_norm, update)
        named_estimator(estimator)  # raises here, not at the first measurement
        self._lr, self._update = lr, update
        self._critical = CriticalSteps() if require_flag(critical, "critical=") else None
        self._noise = LossNoise.where(sharpness, certificate)
        self._tracker = SharpnessTracker(options, estimator, certificate)
        self._part_trackers = PartTrackers(options, estimator, certificate)
        self._parts: Callable[[], Mapping[str, Part]] = dict  # of several geometries, by name
        self._schedule = Schedule(every, budget)
        self._norm = None if norm is None and not sharpness else norm_source(norm)
        self._quantities = [each for each in quantities().values() if each.measure is not None]
        self._problem = problem(model, **problem_arguments)
        self._owned = self._problem is not model
        self._closed = False
        self._pending: Observation | None = None
        self._warn = WarnOnce()
        self._noted: set[str] = set()
        self._remarks: list[str] = []  # for the next record
        self.run, self._seed = new_run(), seed
        self.records: list[Record] = []
        try:
            if isinstance(self._norm, Norm):
                space = self._problem.at().space
                bound = self._norm.bind(space)
                if certificate:
                    require_envelope(bound, space)
            self._log = RunLog(as_sinks(log if self._problem.leads else None, mode), self._warn)
        except BaseException:
            if self._owned:
                try_to_close(self._problem, "the problem", self._warn)
            raise

    def due(self, step: int) -> bool:
        """Whether to measure at this step. Cheap, and changes nothing."""
        if self._closed:
            return False
        try:
            due = is_true(self._schedule.due(step), "every=")
            return due if self._schedule.by_step_alone else self._problem.agree(due)
        except Exception as e:
            self._warn("every", f"every= failed, and nothing is measured: {one_line(e)}")
            return False

    def before(self, step: int, params: Any = None) -> None:
        """Measure at the point that the next step of the optimizer starts from.

        Args:
            step: the number of the step, for the record.
            params: the point, as for ``problem.at(params)``; default: where the model is now.

        Raises:
            ArgumentError: ``step`` is no whole number.
        """
        if self._closed:
            return
        step = whole_step(step)
        self.abandon()
        began = self._schedule.begin(step)
        pending = Observation(step, self._problem, self._quantities, {"run": self.run})
        pending.noise, pending.critical = self._noise, self._critical
        while self._remarks:
            pending.note(self._remarks.pop(0))
        self._measure_before(pending, params)
        pending.seconds = self._schedule.spend(began)
        self._pending = pending

    def after(self, params: Any = None) -> Record | None:
        """Measure along the step that was taken, and write the record.

        Args:
            params: the new point; default: where the model is now.

        Returns:
            The record; None where no :meth:`before` precedes.
        """
        pending = self._take()
        if pending is None:
            return None
        began = time.perf_counter()
        self._measure_after(pending, params)
        pending.measure_quantities()
        pending.seconds += self._schedule.spend(began)
        return self._write(pending)

    def remark(self, text: str) -> None:
        """Add ``text`` to the note of the next record."""
        self._remarks.append(text)

    def abandon(self) -> None:
        """Write the record of a :meth:`before` that no :meth:`after` will follow, if any."""
        pending = self._take()
        if pending is not None:
            pending.note("the step was not observed")
            self._write(pending)

    def observe(self, step: int, params: Any, new_params: Any) -> Record | None:
        """Call :meth:`before` and :meth:`after`, for loops that keep both points.

        Args:
            step: the number of the step.
            params: the point before it.
            new_params: the point after it.

        Returns:
            The record; None where no measurement was due.
        """
        if not self.due(step):
            return None
        self.before(step, params)
        return self.after(new_params)

    def close(self) -> None:
        """Write the pending record; close the sinks, and the problem if it was created here."""
        if self._closed:
            return
        self.abandon()
        self._closed = True
        with ExitStack() as each:  # also where Ctrl-C ends one of them
            if self._owned:
                each.callback(try_to_close, self._problem, "the problem", self._warn)
            each.callback(self._log.close)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain numbers, texts, lists and dicts."""
        tracker, schedule = self._tracker.state_dict(), self._schedule.state_dict()
        state: dict[str, Any] = {"version": 1, "tracker": tracker, "schedule": schedule}
        state |= {"critical": self._critical.state()} if self._critical else {}
        return state | {"noted": sorted(self._noted), "run": self.run} | self._part_trackers.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned, in this process or an earlier one.

        Raises:
            ArgumentError: ``state`` is something else.
        """
        own = self._tracker, self._part_trackers, self._schedule, self._critical
        self._tracker, self._part_trackers, self._schedule, self._critical = loaded(state, *own)
        self._noted = {str(note) for note in state.get("noted", ())}
        self.run = str(state.get("run", self.run))

    def _optimizer(self) -> Mapping[str, Any]:
        """The optimizer with its hyper-parameters, as far as they are known; for the header."""
        return rule_values(self._lr, self._update)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self) -> Observation | None:
        """The pending measurement, if any; a forked child leaves that of its parent alone."""
        pending, self._pending = self._pending, None
        return pending if pending is not None and pending.process == os.getpid() else None

    def _measure_before(self, pending: Observation, params: Any) -> None:
        """All that is measured at w, before the step."""
        with pending.noting("the measurement"):
            pending.copy(params, self._problem.unmeasured(params))
            pending.freeze(params)
            self._measure(pending)
        self._compare(pending)

    def _measure_after(self, pending: Observation, params: Any) -> None:
        """All that is measured along the step, after it."""
        with pending.noting("the step"):
            besides = pending.moved_besides(self._problem.unmeasured(params))
            pending.measure_step(params, besides)

    def _compare(self, pending: Observation) -> None:
        with pending.noting("no threshold"):
            rule = self._rule(pending)
            pending.compare(rule)
            self._note_once(pending, () if rule is None else rule.caveat.split("; "))

    def _measure(self, pending: Observation) -> None:
        if self._noise is not None:
            assert pending.oracle is not None
            pending.norm, note = norm_of_step(self._norm, pending.oracle.space)
            self._note_once(pending, (note,))
            return
        if parts := self._parts():
            self._note_once(pending, pending.measure_parts(parts, self._part_trackers))
            return
        assert self._norm is not None
        result = pending.measure(current_norm(self._norm), self._tracker)
        known = pending.oracle if result is None else result
        self._note_once(pending, () if known is None else known.notes)

    def _note_once(self, pending: Observation, notes: Iterable[str]) -> None:
        """Notes that hold for the whole run are in the first record alone."""
        for note in notes:
            if note not in self._noted:
                self._noted.add(note)
                pending.note(note)

    def _rule(self, pending: Observation) -> Update | None:
        """The update rule at the step that is measured; S and ‖g‖* are known."""
        return self._clipped(rule_at(pending.step, self._lr, self._update), pending)

    def _clipped(self, rule: Update | None, pending: Observation) -> Update | None:
        """A rule that no step was compared with, with what ``clip_norm=`` says."""
        clipping = None if rule is None else self._clipping(pending)
        return rule if rule is None or clipping is None else clipping.of_stated(rule)

    def _clipping(self, pending: Observation) -> Clipping | None:
        """What ``clip_norm=`` says of the step."""
        if self._clip_norm is None or pending.oracle is None:
            return None
        length = float(norm2(pending.oracle.gradient()))
        return Clipping(self._clip_norm, length, is_whole=not pending.rest)

    def _write(self, pending: Observation) -> Record:
        began = time.perf_counter()
        record = pending.record()
        self.records.append(record)
        parts = (self._problem, pending.norm, self._optimizer, self._seed)
        self._log.write(record, lambda: run_header(self.run, *parts))
        self._schedule.spend(began)
        return record
