"""A monitor that is attached to optimizers, and measures in the hooks of their steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from geodiag.certificates.certificate import require_envelope
from geodiag.core.selection import Where
from geodiag.errors import ArgumentError
from geodiag.estimators import SharpnessEstimator
from geodiag.norms import Norm
from geodiag.optimizers.thresholds import Update
from geodiag.problems import NormLike, is_of_optimizer, norm_source
from geodiag.sinks import Log
from geodiag_torch.optimizer_monitor import OptimizerMonitor
from geodiag_torch.optimizers.attached import notice
from geodiag_torch.optimizers.following import Following
from geodiag_torch.optimizers.wrappers import limited, steppings


def attach(
    optimizer: Optimizer | Sequence[Optimizer],
    model: nn.Module,
    norm: NormLike = None,
    *,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    criterion: Callable[[Any, Any], Tensor] | None = None,
    data: Any = None,
    where: Where = None,
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
) -> OptimizerMonitor:
    """Measure a run inside of ``optimizer.step()``; the training loop is not changed.

    The optimizer's hooks hold the monitor, so it lives as long as the optimizer. Training is
    bit-identical with and without it. Learning rates, momentum and weight decay are read from the
    optimizer's parameter groups, and preconditioners from its state, at each measurement.

    Args:
        optimizer: any torch optimizer, with or without closures. Wrappers (of Accelerate or
            Lightning, Lookahead, SAM) are looked through: the step is the one that moves the
            parameters, and the norm that of the optimizer inside. Or all optimizers of the
            model in a list: a step is then all that they do with one gradient. It begins before
            the first of them and ends after the last, or where the next step begins.
        model: the module. At each record, those of its parameters are measured that the optimizer
            then holds and that require gradients.
        norm: None or "auto": the optimizer's own, see :mod:`geodiag.optimizers.families`. Else a
            registered name, a Norm, or a function that returns one at each measurement; if that
            is not the optimizer's norm, there is no threshold.
        loss_fn: with ``criterion`` and ``data``: the loss and the probe data, one batch or a
            loader; as in :func:`geodiag.problem`.
        criterion: see ``loss_fn``.
        data: see ``loss_fn``.
        where: measure only these of the optimizer's parameters.
        update: the update rule, if the optimizer's options do not determine it.
        every: as in :class:`geodiag.Monitor`, like all that follow; steps are the optimizer's.
        budget: the share of the run's time that measurements may take.
        log: where records are written.
        mode: "a": append to the file of ``log``; "w": empty it before the first record.
        estimator: as in :func:`geodiag.sharpness`.
        max_hvps: the largest number of Hessian-vector products of one measurement.
        rtol: the relative tolerance of S.
        certificate: whether to compute an upper bound on S.
        sharpness: False: ζ, D and curvature of the step alone, at a fraction of the cost, and for
            any optimizer: where its norm is not known, there is no D.
        critical: whether records have the critical learning rate.
        clip_norm: the largest gradient norm that the training clips to, as in
            :class:`geodiag.Monitor`: where the probe's gradient does not show it.
        seed: of the random starts.
        **problem_arguments: ``weight``, ``reduction``, ``engine``, ``memory``,
            ``process_group``, ``stop_gradient``, ``guard``: as in :func:`geodiag.problem`.

    Returns:
        OptimizerMonitor: a :class:`geodiag.Monitor` with ``steps`` and ``detach()``.

    Raises:
        ArgumentError: ``norm`` is left out, and the optimizer's is not known, though S is to be
            measured; or an argument cannot be used.
        ParameterError: an optimizer holds no parameter of the model, or two of them hold one.
        DataError, LossError: the loss cannot be computed from the model and the data.
        GeodiagError: another subclass for other unusable arguments.

    Examples:
        >>> import torch, geodiag_torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> mse = torch.nn.functional.mse_loss
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = geodiag_torch.attach(optimizer, model, criterion=mse, data=(x, y), every=5)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     mse(model(x), y).backward()
        ...     optimizer.step()
        >>> [(r.step, r.threshold) for r in monitor.records]
        [(0, 20.0), (5, 20.0)]
    """
    steps = steppings(optimizer)
    if not isinstance(model, nn.Module):
        raise ArgumentError("attach() takes a torch module", got=type(model).__name__)
    problem_arguments |= {"criterion": criterion, "loss_fn": loss_fn, "data": data}
    asked = None if is_of_optimizer(norm) else norm_source(norm)
    inner = [each.inner for each in steps]
    following = Following(inner, model, where, problem_arguments, asked, sharpness)
    if certificate and isinstance(asked, Norm):
        space = following.problem.at().space
        require_envelope(asked.bind(space), space)
    update = limited(steps, following.geometry.update) if update is None else update
    monitor = OptimizerMonitor(
        steps,
        following,
        update=update,
        every=every,
        budget=budget,
        log=log,
        mode=mode,
        estimator=estimator,
        max_hvps=max_hvps,
        rtol=rtol,
        certificate=certificate,
        sharpness=sharpness,
        critical=critical,
        clip_norm=clip_norm,
        seed=seed,
    )
    for each in steps:
        if each.remark:
            monitor.remark(each.remark)
    kind = (sharpness, critical, certificate)
    try:
        notice(inner[0], monitor._finalizers[0], data, asked, where, loss_fn, criterion, kind)
    except RuntimeWarning:  # where warnings are errors
        monitor.detach()
        raise
    return monitor
