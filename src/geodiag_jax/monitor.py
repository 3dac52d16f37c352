"""The Monitor for JAX training loops: the parameters come with each measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jax

import geodiag
from geodiag.certificates.certificate import require_envelope
from geodiag.core.selection import Where
from geodiag.core.validation import whole_step
from geodiag.errors import ArgumentError
from geodiag.estimators import SharpnessEstimator
from geodiag.monitoring.observation import Observation
from geodiag.monitoring.rules import check_rule
from geodiag.monitoring.run_header import rule_values
from geodiag.norms import Norm
from geodiag.optimizers.families import plain_descent
from geodiag.optimizers.geometry import Geometry
from geodiag.optimizers.thresholds import Update
from geodiag.problems import NormLike, current_norm, is_of_optimizer, norm_source
from geodiag.records import Record
from geodiag.sinks import Log
from geodiag_jax.aliasing import shared_by, snapshot
from geodiag_jax.deferred import Deferred, check_usable, copied, is_deleted
from geodiag_jax.flags import own_flags
from geodiag_jax.optimizers.counts import rates, read_counts
from geodiag_jax.optimizers.description import description
from geodiag_jax.optimizers.geometry import (
    NOT_COMPARED,
    STATE_BEFORE,
    check_hyperparams,
    latest,
    read_geometry,
    with_advice,
)
from geodiag_jax.optimizers.parts import as_parts, ends_of, read_parts, rule_of_parts


class Monitor(geodiag.Monitor):
    """Measures a JAX training run at chosen steps, and records it.

    If ``train_step`` donates the parameters, their buffers are gone after it. Then measure around
    it: ``if monitor.due(step): monitor.before(step, params)``, which keeps a copy, the step, and
    ``monitor.after(params)``. Inside of ``jit`` and ``scan`` use :func:`geodiag_jax.tracker`.

    Training is bit-identical with and without it. Functions are compiled once, not for each point.

    Args:
        loss: ``loss(params, *batch)``, a real scalar.
        norm: None or "auto": the optimizer's own, read from the ``opt_state`` that is passed with
            each step, see :func:`geodiag_jax.geometry`. Else a registered name, a Norm, or a
            function without arguments that returns a Norm at each measurement.
        data: the probe data, one batch or a list or loader of batches; as in
            :func:`geodiag.problem`.
        where: measure only these parameters; see :func:`geodiag.problem`.
        lr: the learning rate, or a schedule: a function of the step. With ``opt_state``, the update
            rule is the optimizer's, and a learning rate in the state need not be given. Without
            one, it is the plain −lr·‖g‖*·lmo(g).
        update: instead of ``lr``: a :class:`geodiag.Update`, or a function of the step that
            returns one.
        hyperparams: of the optimizer, if its state does not hold them: see
            :func:`geodiag_jax.geometry`.
        every: as in :class:`geodiag.Monitor`, like all that follow.
        budget: the share of the run's time that measurements may take.
        log: where records are written.
        mode: "a": append to the file of ``log``; "w": empty it before the first record.
        estimator: as in :func:`geodiag.sharpness`.
        max_hvps: the largest number of Hessian-vector products of one measurement.
        rtol: the relative tolerance of S.
        certificate: whether to compute an upper bound on S.
        sharpness: False: ζ, D and curvature of the step alone, as in :class:`geodiag.Monitor`.
        critical: whether records have the critical learning rate.
        clip_norm: as in :class:`geodiag.Monitor`: of ``optax.clip_by_global_norm``.
        seed: of the random starts.
        **problem_arguments: ``weight``, ``reduction``, ``engine``, ``memory``: as in
            :func:`geodiag.problem`.

    Raises:
        GeodiagError: an argument cannot be used; what only the parameters can show is raised by
            the first ``observe`` or ``before``. Later on nothing is raised, and a numerical failure
            never: those are in the records' notes.

    Examples:
        >>> import jax.numpy as jnp
        >>> import geodiag_jax
        >>> def loss(params):
        ...     return 2 * params["w"] @ params["w"]
        >>> params = {"w": jnp.ones(3)}
        >>> with geodiag_jax.Monitor(loss, "l2", lr=0.1, every=2) as monitor:
        ...     for step in range(4):
        ...         new_params = {"w": 0.6 * params["w"]}
        ...         _ = monitor.observe(step, params, new_params)
        ...         params = new_params
        >>> [(r.step, round(r.ratio, 4)) for r in monitor.records]  # S = 4, and 2/lr = 20
        [(0, 0.2), (2, 0.2)]
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        norm: NormLike = None,
        *,
        data: Any = None,
        where: Where = None,
        lr: float | Callable[[int], Any] | None = None,
        update: Update | Callable[[int], Update] | None = None,
        hyperparams: Mapping[str, Any] | None = None,
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
        check_rule(lr, update)
        check_hyperparams(hyperparams)
        self._source = None if is_of_optimizer(norm) else norm_source(norm)
        self._certificate = certificate
        self._hyperparams = dict(hyperparams or {})
        self._given_lr, self._given_update = lr, update
        self._states: tuple[Any, Any] = (None, None)  # the optimizer's, after and before the step
        self._previous: tuple[int, Any] | None = None  # the step before, and the state after it
        self._points: tuple[Any, Any] | None = None  # both ends of an observed step
        self._kept: tuple[int, Any, Any] | None = None  # what ``before`` was called with
        self._measured: Norm | None = None  # at the last measurement
        self._deferred = Deferred(loss, where, data=data, **problem_arguments)
        when = {"every": every, "budget": budget, "log": log, "mode": mode}
        how = {"estimator": estimator, "max_hvps": max_hvps, "rtol": rtol, "seed": seed}
        options: dict[str, Any] = when | how | {"certificate": certificate, "update": update}
        options |= {"sharpness": sharpness, "critical": critical, "clip_norm": clip_norm}
        super().__init__(self._deferred, self._norm_now, **options)
        self._parts = lambda: as_parts(self._parts_in(self._states, None))

    @own_flags()
    def observe(
        self, step: int, params: Any, new_params: Any, opt_state: Any = None
    ) -> Record | None:
        """Measure a step that was taken.

        Call it at every step: of the one before a measurement the state is kept, since the two
        states show which gradient the optimizer received.

        Args:
            step: the number of the step, which schedules are called with, unless ``opt_state``
                has a count of its own.
            params: the parameters before it: not what the step writes to, as the states of
                ``flax.nnx`` are; of such, pass a copy.
            new_params: the parameters after it.
            opt_state: the optax state after it, which holds Adam's preconditioner of this step.

        Returns:
            The record; None where no measurement was due.

        Raises:
            GeodiagError: from the first call, where an argument cannot be used.
        """
        self._open(params, opt_state)
        if not self.due(step):
            self._keep(step, opt_state)
            return None
        earlier = None if opt_state is None else self._earlier(step)
        try:
            return self._observe(step, params, new_params, opt_state, earlier)
        finally:
            self._keep(step, opt_state)

    @own_flags()
    def before(self, step: int, params: Any = None, opt_state: Any = None) -> None:
        """Measure around a step whose buffers are donated.

        Copies of the parameters and of the state are kept until :meth:`after`.

        Args:
            step: the number of the step.
            params: the parameters.
            opt_state: the optax state, as the step will find it.

        Raises:
            GeodiagError: from the first call, where an argument cannot be used.
        """
        self._open(params, opt_state)
        step = whole_step(step)
        self.abandon()
        if not self._closed:
            self._kept = (step, copied(params), copied(opt_state))

    @own_flags()
    def after(self, params: Any = None, opt_state: Any = None) -> Record | None:
        """Measure the step that was taken since :meth:`before`, and write the record.

        Args:
            params: the parameters after it.
            opt_state: the optax state after it. Without it, the norm is that of the state before.

        Returns:
            The record; None where no :meth:`before` precedes.
        """
        kept, self._kept = self._kept, None
        if kept is None:
            return super().after(params)
        step, here, state = kept
        return self._observe(step, here, params, opt_state, state)

    def abandon(self) -> None:
        """Write the record of a :meth:`before` that no :meth:`after` will follow, if any."""
        kept, self._kept = self._kept, None
        if kept is not None:
            step, here, state = kept
            self._states = None, state
            try:
                super().before(step, here)
            finally:
                self._states = None, None
        super().abandon()

    def _observe(
        self, step: int, here: Any, there: Any, opt_state: Any, earlier: Any
    ) -> Record | None:
        self._states, self._points = (opt_state, earlier), (here, there)
        try:
            super().before(step, here)
            return super().after(there)
        finally:
            self._states, self._points = (None, None), None

    def _measure_before(self, pending: Observation, params: Any) -> None:
        shared = "" if self._points is None else shared_by(*self._points)
        if not shared:
            super()._measure_before(pending, params)
            return
        pending.note(shared)
        self._measured = None
        self._compare(pending)

    def _optimizer(self) -> Mapping[str, Any]:
        state = next((s for s in self._states if s is not None), None)
        return description(state) | rule_values(self._given_lr, self._given_update)

    def _keep(self, step: int, opt_state: Any) -> None:
        """Keep the state, where the next step is measured, or may be."""
        self._previous = None
        known = self._schedule.by_step_alone  # else the time, or a function, decides only then
        wanted = opt_state is not None and not self._closed
        if wanted and (not known or self._schedule.due(step + 1)):
            with suppress(Exception):  # what is no pytree is not kept: the reader says why
                self._previous = (step, snapshot(opt_state))

    def _earlier(self, step: int) -> Any:
        """The state before a step; None where it was not kept, or was donated to it."""
        kept, state = self._previous or (None, None)
        return state if kept == step - 1 and not is_deleted(state) else None

    def _open(self, params: Any, opt_state: Any) -> None:
        """At the first call, check all that depends on the parameters and the state."""
        if self._deferred.opened or self._closed:
            return
        check_usable(params)
        self._deferred.open(params)
        try:
            states = opt_state, None
            if self._source is None and self._noise is None and not self._parts_in(states, None):
                self._geometry(states, None)
            elif isinstance(self._source, Norm):
                bound = self._source.bind(self._deferred.space)
                if self._certificate:
                    require_envelope(bound, self._deferred.space)
            oracle = self._deferred.at(params)
            jax.eval_shape(oracle.loss_at, oracle.point())  # computes nothing
        except BaseException:
            self._deferred.opened = False
            raise

    def _geometry(self, states: tuple[Any, Any], lr: float | None) -> Geometry:
        after, before = latest(states)
        measured = None if self._source is None else self._measured
        return read_geometry(after, self._deferred.space, lr, self._hyperparams, before, measured)

    def _parts_in(self, states: tuple[Any, Any], lr: Any) -> dict[str, Geometry]:
        """The geometries that no norm joins; empty where one norm is measured."""
        if self._source is not None:
            return {}
        return read_parts(states, self._deferred.space, lr, self._hyperparams)

    def _norm_now(self) -> Norm:
        if self._source is None:
            self._measured = None
            lr = None if self._given_lr is None else 1.0  # one for all: no matter which
            self._measured = self._geometry(self._states, lr).norm()
        else:
            self._measured = current_norm(self._source)
        return self._measured

    def _rule(self, pending: Observation) -> Update | None:
        """The update rule: as given, or read from the optimizer's state."""
        if self._given_update is not None:
            return super()._rule(pending)
        after, before = self._states
        counts = read_counts(before if after is None else after, after is not None)
        if pending.parts:
            lr = rates(self._given_lr, pending.step, counts)[0]
            ends = ends_of(pending, self._points)
            parts = self._parts_in(self._states, lr)
            clipping = self._clipping(pending)
            return rule_of_parts(pending, parts, ends, self._deferred.unit, clipping)
        updates = [
            self._rule_at(pending, None if lr is None else float(lr))
            for lr in rates(self._given_lr, pending.step, counts)
        ]
        found = next((u for u in updates if u is not None and not u.unknown), updates[0])
        if found is not None and counts.apart:
            return replace(found, unknown=counts.apart)
        return found

    def _rule_at(self, pending: Observation, lr: float | None) -> Update | None:
        """The update rule with this learning rate, as far as the step does not contradict it."""
        after, before = self._states
        space = self._deferred.space
        try:
            if after is not None or before is not None:
                found = self._geometry(self._states, lr)
                update = found.update(None if self._source is None else self._measured)
            elif lr is None or self._measured is None:
                return None if lr is None else self._clipped(Update(lr), pending)
            else:
                update = Update(lr)
                found = Geometry(plain_descent(self._measured, lr, space), space)
        except ArgumentError as e:
            return Update(float("nan") if lr is None else lr, unknown=e.what)
        if after is None and before is not None and not update.unknown:
            return replace(update, unknown=STATE_BEFORE)
        ends = ends_of(pending, self._points)
        if ends is None or self._measured is None or update.unknown:
            return self._clipped(update, pending)
        if pending.oracle is None:
            return replace(update, unknown=NOT_COMPARED)
        unit, clipping = self._deferred.unit, self._clipping(pending)
        update = found.follow(update, ends, pending.oracle.gradient(), unit, clipping)
        return replace(update, unknown=with_advice(update.unknown))
