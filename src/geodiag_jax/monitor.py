"""The Monitor for JAX training loops: the parameters come with each measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

import geodiag
from geodiag.core.selection import Where
from geodiag.errors import ArgumentError, ParameterError
from geodiag.estimators import SharpnessEstimator
from geodiag.monitoring.observation import check_rule
from geodiag.norms import Norm
from geodiag.optimizers.geometry import Geometry
from geodiag.optimizers.thresholds import Update
from geodiag.problems import NormLike, current_norm, is_of_optimizer, norm_source
from geodiag.records import Record
from geodiag.sinks import Log
from geodiag_jax.optimizers.geometry import check_hyperparams, mismatch, read_geometry
from geodiag_jax.oracle import JaxOracle
from geodiag_jax.problem import JaxProblem
from geodiag_jax.pytree import is_array, leaves_of, read


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
        estimator: as in :func:`geodiag.sharpness`.
        max_hvps: the largest number of Hessian-vector products of one measurement.
        rtol: the relative tolerance of S.
        certificate: whether to compute an upper bound on S.
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
        estimator: SharpnessEstimator | str = "auto",
        max_hvps: int | None = None,
        rtol: float | None = None,
        certificate: bool = False,
        seed: int = 0,
        **problem_arguments: Any,
    ) -> None:
        check_rule(lr, update)
        check_hyperparams(hyperparams)
        self._source = None if is_of_optimizer(norm) else norm_source(norm)
        self._hyperparams = dict(hyperparams or {})
        self._given_lr, self._given_update = lr, update
        self._opt_state: Any = None
        self._points: tuple[Any, Any] | None = None  # both ends of an observed step
        self._measured: Norm | None = None  # at the last measurement
        self._deferred = Deferred(loss, where, data=data, **problem_arguments)
        super().__init__(
            self._deferred,
            self._norm_now,
            update=self._rule_now,  # type: ignore[arg-type]
            every=every,
            budget=budget,
            log=log,
            estimator=estimator,
            max_hvps=max_hvps,
            rtol=rtol,
            certificate=certificate,
            seed=seed,
        )

    def observe(
        self, step: int, params: Any, new_params: Any, opt_state: Any = None
    ) -> Record | None:
        """Measure a step that was taken.

        Args:
            step: the number of the step, which schedules are called with.
            params: the parameters before it.
            new_params: the parameters after it.
            opt_state: the optax state after it, which holds Adam's preconditioner of this step.

        Returns:
            The record; None where no measurement was due.

        Raises:
            GeodiagError: from the first call, where an argument cannot be used.
        """
        self._open(params, opt_state)
        if not self.due(step):
            return None
        self._opt_state, self._points = opt_state, (params, new_params)
        try:
            super().before(step, params)
            return self.after(new_params)
        finally:
            self._opt_state = self._points = None

    def before(self, step: int, params: Any = None, opt_state: Any = None) -> None:
        """Measure before a step.

        A copy of the parameters is kept until :meth:`after`, so their buffers may be donated.

        Args:
            step: the number of the step.
            params: the parameters.
            opt_state: the optax state, as the step will find it.

        Raises:
            GeodiagError: from the first call, where an argument cannot be used.
        """
        self._open(params, opt_state)
        self._opt_state = opt_state
        try:
            super().before(step, _copied(params))
        finally:
            self._opt_state = None

    def _open(self, params: Any, opt_state: Any) -> None:
        """At the first call, check all that depends on the parameters and the state."""
        if self._deferred.opened or self._closed:
            return
        _check_usable(params)
        self._deferred.open(params)
        try:
            if self._source is None:
                self._geometry(opt_state, None)
            elif isinstance(self._source, Norm):
                self._source.bind(self._deferred.space)
            oracle = self._deferred.at(params)
            jax.eval_shape(oracle.loss_at, oracle.point())  # computes nothing
        except BaseException:
            self._deferred.opened = False
            raise

    def _geometry(self, opt_state: Any, lr: float | None) -> Geometry:
        if opt_state is None:
            raise ArgumentError(
                "without norm=, the norm is read from the optimizer's state",
                got="no opt_state",
                do="pass observe(step, params, new_params, opt_state), or say norm=",
            )
        return read_geometry(opt_state, self._deferred.space, lr, self._hyperparams)

    def _norm_now(self) -> Norm:
        if self._source is None:
            self._measured = None
            lr = None if self._given_lr is None else 1.0  # one for all: no matter which
            self._measured = self._geometry(self._opt_state, lr).norm()
        else:
            self._measured = current_norm(self._source)
        return self._measured

    def _rule_now(self, step: int) -> Update | None:
        """The update rule: as given, or read from the optimizer's state."""
        if self._given_update is not None:
            return self._given_update(step) if callable(self._given_update) else self._given_update
        lr = self._given_lr(step) if callable(self._given_lr) else self._given_lr
        lr = None if lr is None else float(lr)
        if self._opt_state is None:
            return None if lr is None else Update(lr)
        try:
            found = self._geometry(self._opt_state, lr)
        except ArgumentError as e:
            return Update(float("nan") if lr is None else lr, unknown=e.what)
        update = found.update(None if self._source is None else self._measured)
        if self._points is None or update.unknown:
            return update
        here, there = (self._deferred.at(point).point() for point in self._points)
        return replace(update, unknown=mismatch(found, here, there))


class Deferred(JaxProblem):
    """The problem of a loss whose parameters come later. It holds none of them."""

    def __init__(self, loss: Callable[..., Any], where: Where, **arguments: Any) -> None:
        """Check everything but ``where``; the arguments are those of :class:`JaxProblem`."""
        if not callable(loss):
            raise ArgumentError(
                "the loss must be a function: loss(params, *batch)", got=type(loss).__name__
            )
        if "params" in arguments:
            raise ArgumentError(
                "Monitor(loss) takes no params=",
                do="pass them to observe(step, params, new_params)",
            )
        super().__init__(loss, params=jnp.zeros(()), **arguments)  # until open()
        self._where, self.opened = where, False

    def open(self, params: Any) -> None:
        """Learn the structure of the parameters.

        Raises:
            ParameterError: they cannot be measured.
        """
        self._parameters = replace(read(params, self._where), point=(), fixed=())
        self.opened = True

    def at(self, params: Any = None) -> JaxOracle:
        """The oracle at ``params``, which there is no default for."""
        if params is None:
            raise ParameterError("the parameters are missing", do="pass them to before and after")
        return super().at(params)


def _check_usable(params: Any) -> None:
    for x in leaves_of(params):
        if isinstance(x, jax.core.Tracer):
            raise ArgumentError(
                "the Monitor was called inside jit, grad, scan or vmap",
                do="call it between compiled steps; inside them use geodiag_jax.tracker",
            )
        if isinstance(x, jax.Array) and x.is_deleted():
            raise ArgumentError(
                "the parameters are deleted: their buffers were donated to the step",
                do="call before(step, params) before the step, and after(new_params) after it",
            )


def _copied(params: Any) -> Any:
    """A copy of the arrays, or ``params`` where that fails: the measurement will say why."""
    try:
        return jax.tree_util.tree_map(lambda x: x.copy() if is_array(x) else x, params)
    except Exception:
        return params
