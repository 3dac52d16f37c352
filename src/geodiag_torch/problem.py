"""A PyTorch module, its loss and its data as a Problem."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from geodiag.blocks import Blocks, check_like, to_numpy
from geodiag.core.batch_forms import is_unsure, one_or_many
from geodiag.core.batches import Batches
from geodiag.core.selection import Where, select
from geodiag.core.spaces import MatrixView, Space
from geodiag.core.validation import check_engine, check_stop_gradient
from geodiag.errors import ArgumentError, DataError, EngineError, GeodiagError, ParameterError
from geodiag.oracles import Oracle, Problem
from geodiag_torch.derivatives.batches import counting_weight, token_weight
from geodiag_torch.derivatives.evaluation import Evaluation
from geodiag_torch.derivatives.forward import Leaves, LossModule
from geodiag_torch.derivatives.objective import Objective
from geodiag_torch.oracle import ENGINES, TorchOracle
from geodiag_torch.ranks import Alone, RankBatches, ranks_of, world_size
from geodiag_torch.sharding.detection import as_sharded, local, sharding_of
from geodiag_torch.state.guard import Guard
from geodiag_torch.state.interrupts import Lent
from geodiag_torch.state.module_tensors import JOINTS, ModuleTensors, require_initialised
from geodiag_torch.state.names import named_parameters, public_names, unwrap
from geodiag_torch.state.reach import generators_of
from geodiag_torch.state.rng import FrozenRandomState
from geodiag_torch.state.state_dicts import (
    is_equal,
    of_state_dict,
    refuse_alone,
    refuse_sharded,
    rest_of,
)

NO_DEVICE = torch.empty(0)


class TorchProblem(Problem):
    """Loss + data + the trainable parameters that ``where`` selects.

    Args:
        model: any module; those of DataParallel, DDP and torch.compile are unwrapped.
        loss_fn: ``loss_fn(model, batch) -> scalar`` (batch is None without data).
        criterion: ``criterion(model(x), y) -> scalar``, for batches (x, y).
        data: one batch, or a list or loader of batches; moved to the model's device.
        params: the point: a whole state_dict of the model, all of which is used; the measured
            parameters alone where the model has no other tensors, or is at that point itself;
            default: the module's parameters at each ``at()``.
        engine: "graph" keeps the graph of each batch's gradient and differentiates it again for
            each product; "recompute" rebuilds it, batch by batch; "finite-difference" takes
            differences of gradients; "auto" is graph for one batch, or for several that fit into
            ``memory``, else recompute, and finite differences where the model cannot be
            differentiated twice or its products are not the derivatives of its gradient.
        memory: bytes that the kept graphs may hold; above it "auto" recomputes.
        process_group: the ranks whose data are measured together, ``torch.distributed.group.WORLD``
            for all; default: those of a DDP wrapper, else none. See docs/distributed.md.
        stop_gradient: "constant", "error" or "differentiate"; see :func:`geodiag.problem`.
        guard: modules, generators and objects with state that a measurement must give back.

    Raises:
        ParameterError: no trainable parameter, complex ones, several devices.
        ArgumentError, DataError: see :func:`geodiag.problem`.

    Examples:
        >>> import torch, geodiag_torch
        >>> mse, x, y = torch.nn.functional.mse_loss, torch.ones(8, 1), torch.ones(8, 1)
        >>> problem = geodiag_torch.TorchProblem(torch.nn.Linear(1, 1), criterion=mse, data=(x, y))
        >>> round(float(geodiag.sharpness(problem)), 3)
        4.0
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
        criterion: Callable[[Any, Any], Tensor] | None = None,
        data: Any = None,
        params: Any = None,
        where: Where = None,
        weight: Callable[[Any], float] | None = None,
        reduction: str = "mean",
        engine: str = "auto",
        memory: int | None = None,
        process_group: Any = None,
        stop_gradient: str = "constant",
        guard: Any = None,
    ) -> None:
        check_engine(engine, ENGINES, memory)
        check_stop_gradient(stop_gradient)
        self._engine, self._memory = engine, memory
        inner = unwrap(model)
        self._sharding = sharding_of(inner)
        if self._sharding is not None:
            self._sharding.prepare(inner, engine)
            if stop_gradient != "constant":
                raise ArgumentError(
                    "detached parts of the loss of a sharded module are constants",
                    got=f"stop_gradient={stop_gradient!r}",
                    do="leave it out",
                )
        loss = LossModule(inner, loss_fn, criterion)
        self._synchronised = synchronised(inner)
        means = isinstance(reduction, str) and reduction == "mean"
        if isinstance(data, torch.utils.data.Dataset):
            raise DataError(
                "data= is a Dataset of single examples",
                got=type(data).__name__,
                do="wrap it: torch.utils.data.DataLoader(dataset, batch_size=…)",
            )
        ranks = ranks_together(model, process_group)
        self.leads = ranks.rank == 0
        alone = ranks.size == 1
        weigh: Callable[[Any], float | None] | None = weight
        if weight is None and means and loss_fn is None:
            weigh = token_weight(inner) if criterion is None else counting_weight(criterion, alone)
        try:
            batches = (Batches if alone else RankBatches)(data, weigh, reduction)
        except GeodiagError as e:
            ranks.announce(e)  # the others wait in their first pass
            raise
        if getattr(criterion, "reduction", None) == "sum" != reduction and not batches.single:
            raise ArgumentError(
                'the criterion adds over a batch, and reduction="mean" would average over batches',
                got=f"{criterion}",
                do='pass reduction="sum", or a criterion with reduction="mean"',
            )
        raw = public_names(inner)
        named = named_parameters(inner)
        chosen = select({name: named[own] for name, own in raw.items()}, where)
        device, dtype = device_and_dtype(chosen)
        require_initialised(chosen)
        self.space = space_of(chosen, device, dtype)
        if self._sharding is not None:
            self.space = self._sharding.ShardedSpace.around(self.space, chosen)
        raw_names = {name: "model." + raw[name] for name in chosen}
        loss.tensors().require_replaceable(raw_names)
        kept = Guard(inner, (loss_fn, criterion, weight, *generators_of(data)), guard)
        objective = Objective(
            loss, data, batches, ranks, self.space, device, dtype, raw_names, kept, stop_gradient
        )
        waits = any(m.training for m in self._synchronised)  # for other ranks
        if is_unsure(data) and self._sharding is None and not waits:
            with FrozenRandomState(device, data).restored(), Lent(kept.frozen().one_pass()):
                settled, notes = one_or_many(data, partial(_failure, objective))
            if settled is not data:
                batches = (Batches if alone else RankBatches)(settled, weigh, reduction)
                batches.notes += notes
                objective = replace(objective, data=settled, batches=batches)
        self._objective = objective
        self._params: Any = None
        self.require_whole(params)
        self._params, self._alone = params, params is not None and len(params) == len(chosen)
        self._oracles: weakref.WeakSet[TorchOracle] = weakref.WeakSet()

    def at(self, params: Any = None) -> Oracle:
        """The oracle at ``params`` (blocks), or at the module's parameters as they are now.

        Raises:
            EngineError: SyncBatchNorm layers would communicate in the middle of a pass.
        """
        if any(m.training for m in self._synchronised):
            refuse_synchronised(self._synchronised)
        if params is None and self._alone:  # the module may have moved on since
            self.require_whole(self._params)
        params, others = self._checked(params)
        if self._sharding is not None:
            sharded: Oracle = self._sharding.ShardedOracle(self._objective, params)
            return sharded
        objective = replace(self._objective, others=others) if others else self._objective
        oracle = TorchOracle(objective, params, self._engine, self._memory)
        self._oracles.add(oracle)
        return oracle

    def point(self, params: Any = None) -> Blocks:
        """A copy of ``params``, or of the module's parameters as they are now."""
        params, _ = self._checked(params)
        found = self.live() if params is None else params
        return {name: self.space.asarray(found[name]).clone() for name in self.space.names}

    snapshot = point

    def require_whole(self, params: Any) -> None:
        """Raise a ParameterError where ``params`` is another point, and only a part of it."""
        given, others = self._checked(params)
        if given is None or others:
            return
        # This comes first: FSDP releases here what it has gathered.
        state = self._objective.loss.model.state_dict(keep_vars=True)
        live, cast = self.live(), self.space.place
        rest = rest_of(state, live)
        if rest:
            pairs = [(local(cast(n, given[n])), local(cast(n, live[n]))) for n in live]
            if self.anywhere(not all(is_equal(a, b) for a, b in pairs)):
                refuse_alone(rest, self._sharding is not None)

    def close(self) -> None:
        """Free the graphs that this problem's oracles keep."""
        for oracle in self._oracles:
            oracle.release()

    def agree(self, yes: bool) -> bool:
        """``yes`` as the first of several ranks has it."""
        return self._objective.ranks.first(yes)

    def anywhere(self, yes: bool) -> bool:
        """``yes`` on any of several ranks."""
        return self._objective.ranks.any(yes)

    def describe(self) -> dict[str, Any]:
        """The model's name, how many parameters it has, how many are measured, and the data."""
        model, data = self._objective.loss.model, self._objective.batches.description
        size = sum(p.numel() for p in model.parameters())
        found = {"model": type(model).__name__, "parameters": size, "measured": self.space.size}
        return found | ({"data": data} if data else {})

    def unmeasured(self, params: Any = None) -> Blocks:
        """The trainable parameters that are not measured: of a state_dict, or of the model now."""
        inner, (_, others) = self._objective.loss.model, self._checked(params)
        names, own = public_names(inner), named_parameters(inner)
        rest = {n: r for n, r in names.items() if n not in self.space.shapes}
        return {n: others.get("model." + r, local(own[r].detach())) for n, r in rest.items()}

    def tensors(self) -> ModuleTensors:
        """Where the model, and what else the loss consists of, keep their tensors now."""
        return self._objective.tensors()

    def live(self) -> Leaves:
        """The measured parameters by their public names, as they are now.

        Raises:
            ParameterError: the model lost one, or it has another shape.
        """
        return self._objective.live()

    def _checked(self, params: Any) -> tuple[Any, Mapping[str, Tensor]]:
        """The point that is meant, and the other tensors where it is of a state_dict.

        Without ``params`` it is the problem's; None where the module's own parameters are meant.
        """
        params = self._params if params is None else params
        if params is None:
            return None, {}
        if not isinstance(params, Mapping):
            raise ArgumentError(
                "params= of a torch module is a point: a dict of name → tensor",
                got=type(params).__name__,
                do="leave it out; choose the parameters to measure with where=",
            )
        objective = self._objective
        if set(params) == set(self.space.shapes):
            check_like(params, self.space.shapes, "params")
            return params, {}
        loss = objective.loss
        if self._sharding is not None:
            refuse_sharded(params, self.space.shapes)
        return of_state_dict(params, loss.model, loss.tensors(), objective.raw_names)


def _failure(objective: Objective, batch: Any) -> Exception | None:
    """What the loss of one batch raises; None where it works."""
    try:
        Evaluation(objective).try_out(batch)
    except Exception as e:
        return e
    return None


def space_of(params: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> Space:
    """The space of these parameters, measured in ``dtype``."""
    return Space(
        {name: tuple(p.shape) for name, p in params.items()},
        {n: MatrixView.first_axis_rows(p.dim()) for n, p in params.items() if p.dim() >= 2},
        partial(_asarray, device, dtype),
        joints=JOINTS,
    )


def _asarray(device: torch.device, dtype: torch.dtype, x: Any) -> Tensor:
    tensor = as_sharded(x) if isinstance(x, Tensor) else torch.from_numpy(to_numpy(x))
    return tensor.detach().to(device=device, dtype=dtype)


def synchronised(model: nn.Module) -> list[nn.SyncBatchNorm]:
    """The batch norms that communicate with other ranks in training mode."""
    return [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]


def refuse_synchronised(layers: list[nn.SyncBatchNorm]) -> None:
    """Raise an EngineError where these layers would communicate with other ranks."""
    ranks = max((world_size(m.process_group) for m in layers), default=1)
    if ranks > 1:
        raise EngineError(
            "SyncBatchNorm in training mode communicates with other ranks within a pass",
            got=f"{len(layers)} such layers, on {ranks} ranks",
            do="measure model.eval(), or a copy of the model with nn.BatchNorm layers",
        )


def takes_ranks(model: nn.Module, process_group: Any = None) -> bool:
    """Whether ``model`` is measured by several ranks together, so that each must take part."""
    if sharding_of(unwrap(model)) is not None:
        return True
    return ranks_of(model, process_group, torch.device("cpu")).size > 1


def ranks_together(model: nn.Module, process_group: Any = None) -> Alone:
    """The ranks that measure ``model`` together."""
    inner = unwrap(model)
    device, sharding = next(inner.parameters(), NO_DEVICE).device, sharding_of(inner)
    if sharding is None:
        return ranks_of(model, process_group, device)
    found: Alone = sharding.ranks_of_mesh(inner, process_group, device)
    return found


def device_and_dtype(params: Mapping[str, Tensor]) -> tuple[torch.device, torch.dtype]:
    """The one device of all, and the widest of the dtypes, at least float32.

    Raises:
        ParameterError: they are on several devices, or one is not real.
    """
    first, dtype = next(iter(params)), torch.float32
    device = params[first].device
    for name, p in params.items():
        if not p.is_floating_point():
            raise ParameterError(
                f"the parameter {name!r} is not real",
                got=str(p.dtype),
                do="leave it out, or split it into real and imaginary parts",
            )
        if p.device != device:
            raise ParameterError(
                "the parameters are on several devices",
                got=f"{first!r} on {device}, {name!r} on {p.device}",
                do="move the model to one device, or choose the tensors of one",
            )
        dtype = torch.promote_types(dtype, p.dtype)
    return device, dtype
