"""A PyTorch module, its loss and its data as a Problem."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geodiag.blocks import check_like, to_numpy
from geodiag.data import Batches
from geodiag.errors import ArgumentError, ParameterError
from geodiag.oracles import Problem
from geodiag.selection import Where, select
from geodiag.spaces import MatrixView, Space
from geodiag_torch.forward import Leaves, Loss, evaluate, token_weight, unwrap
from geodiag_torch.oracle import ENGINES, TorchOracle

PREFIXES = ("module.", "_orig_mod.")


class TorchProblem(Problem):
    """Loss + data + the trainable parameters that ``where`` selects.

    Args:
        model: any module; wrappers of DataParallel, DDP and torch.compile are looked through.
        loss_fn: ``loss_fn(model, batch) -> scalar`` (batch is None without data).
        criterion: ``criterion(model(x), y) -> scalar``, for batches (x, y).
        data: one batch, or a list or loader of batches; moved to the model's device.
        params: the point as blocks; default: the module's parameters at each ``at()``.
        engine: "graph" keeps the graph of the gradient and differentiates it again for each
            product; "recompute" builds it anew, batch by batch; "finite-difference" takes
            differences of gradients; "auto" is graph for one batch, recompute for several, and
            finite differences where the model cannot be differentiated twice.
        memory: bytes that a kept graph may hold; above it "auto" recomputes.

    Raises:
        ParameterError: no trainable parameter, complex ones, several devices.
        ArgumentError, DataError: see :func:`geodiag.problem`.
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
    ) -> None:
        if engine not in ENGINES:
            raise ArgumentError("unknown engine", got=repr(engine), do=f"use one of {ENGINES}")
        if memory is not None and not memory >= 0:
            raise ArgumentError("memory= must be a number of bytes", got=repr(memory))
        self.engine, self.memory = engine, memory
        inner = unwrap(model)
        self.loss = Loss(inner, loss_fn, criterion)
        if weight is None and loss_fn is None and criterion is None:
            weight = token_weight(inner)
        self.data = data
        self.batches = Batches(data, weight, reduction)
        raw = select(_trainable(inner), where)
        self._raw_names = {_clean(name): name for name in raw}
        self.device, self.dtype = _common(raw)
        self.space = Space(
            {name: tuple(raw[r].shape) for name, r in self._raw_names.items()},
            {
                name: MatrixView.first_axis_rows(raw[r].dim())
                for name, r in self._raw_names.items()
                if raw[r].dim() >= 2
            },
            self._asarray,
        )
        self._params = params
        if params is not None:
            self._check_params(params)
        self._oracles: weakref.WeakSet[TorchOracle] = weakref.WeakSet()

    def at(self, params: Any = None) -> TorchOracle:
        """The oracle at ``params`` (blocks), or at the module's parameters as they are now."""
        params = self._params if params is None else params
        if params is not None:
            self._check_params(params)
        oracle = TorchOracle(self, params)
        self._oracles.add(oracle)
        return oracle

    def close(self) -> None:
        """Free the graphs that this problem's oracles keep."""
        for oracle in self._oracles:
            oracle.release()

    def tensors(self, measured: bool) -> Iterator[Tensor]:
        """The model's tensors on which the loss depends, with or without the measured ones."""
        own = {id(p) for p in self.live().values()}
        for p in self.loss.model.parameters():
            if measured or id(p) not in own:
                yield p
        yield from self.loss.model.buffers()

    def live(self) -> dict[str, Tensor]:
        """The measured parameters by their public names, as they are now."""
        named = dict(self.loss.model.named_parameters())
        return {name: named[raw] for name, raw in self._raw_names.items()}

    def leaves(self, params: Mapping[str, Tensor] | None) -> Leaves:
        """Fresh autograd leaves; at the live parameters they share storage, at others not."""
        out = {}
        for name, p in self.live().items():
            leaf = p.detach() if params is None else params[name].detach().to(p.dtype).clone()
            out[name] = leaf.requires_grad_()
        return out

    def evaluate(self, leaves: Leaves, batch: Any) -> Tensor:
        """The loss of one batch at ``leaves``."""
        raw = {self._raw_names[name]: leaf for name, leaf in leaves.items()}
        return evaluate(self.loss, raw, batch, self.device)

    def _check_params(self, params: Any) -> None:
        if not isinstance(params, Mapping):
            raise ArgumentError(
                "params= of a torch module is a point: a dict of name → tensor",
                got=type(params).__name__,
                do="leave it out; choose the parameters to measure with where=",
            )
        check_like(params, self.space.shapes, "params")

    def _asarray(self, x: Any) -> Tensor:
        tensor = x if isinstance(x, Tensor) else torch.from_numpy(to_numpy(x))
        return tensor.detach().to(device=self.device, dtype=self.dtype)


def _clean(name: str) -> str:
    for prefix in PREFIXES:
        name = name.replace(prefix, "") if prefix == "_orig_mod." else name.removeprefix(prefix)
    return name


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ParameterError(
                f"the parameter {name!r} has no shape yet", do="run the model once on a batch first"
            )
        if p.requires_grad:
            found[name] = p
    if not found:
        raise ParameterError(
            "the model has no trainable parameters",
            got=f"{sum(1 for _ in model.parameters())} parameters, none with requires_grad",
            do="pass a model with parameters, or call model.requires_grad_(True)",
        )
    return found


def _common(params: Mapping[str, Tensor]) -> tuple[torch.device, torch.dtype]:
    """The one device of all, and the measurement dtype: the widest, at least float32."""
    first = next(iter(params))
    dtype = torch.float32
    for name, p in params.items():
        if not p.is_floating_point():
            raise ParameterError(
                f"the parameter {name!r} is not real",
                got=str(p.dtype),
                do="leave it out with where=, or split it into real and imaginary parts",
            )
        if p.device != params[first].device:
            raise ParameterError(
                "the measured parameters are on several devices",
                got=f"{first!r} on {params[first].device}, {name!r} on {p.device}",
                do="move the model to one device, or select the tensors of one with where=",
            )
        if p.is_meta:
            raise ParameterError(
                f"the parameter {name!r} is on the meta device", do="initialise it"
            )
        dtype = torch.promote_types(dtype, p.dtype)
    return params[first].device, dtype
