"""From a module and a batch to a scalar loss, with other tensors in place of the parameters.

The user's module is never modified: ``torch.func.functional_call`` lends it our leaves and clones
of its buffers for the time of one forward pass, and gives its own back also when that raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from geodiag.errors import ArgumentError, DataError, LossError

Leaves = dict[str, Tensor]


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside of DataParallel, DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


class Loss(nn.Module):
    """``forward(batch)`` is the loss of ``model``; wraps it so that functional_call reaches it."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Tensor] | None,
        criterion: Callable[[Any, Any], Tensor] | None,
    ) -> None:
        super().__init__()
        if loss_fn is not None and criterion is not None:
            raise ArgumentError(
                "loss_fn= and criterion= exclude each other",
                do="pass criterion(model(x), y) or loss_fn(model, batch), not both",
            )
        for name, f in (("loss_fn", loss_fn), ("criterion", criterion)):
            if f is not None and not callable(f):
                raise ArgumentError(f"{name}= must be callable", got=type(f).__name__)
        self.model = model
        self._functions = (loss_fn, criterion)  # in a tuple: a criterion's parameters stay its own

    def forward(self, batch: Any) -> Tensor:
        loss_fn, criterion = self._functions
        if loss_fn is not None:
            return loss_fn(self.model, batch)
        if criterion is not None:
            return criterion(*self._output_and_target(batch))
        return self._own_loss(batch)

    def _output_and_target(self, batch: Any) -> tuple[Any, Any]:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError(
                "criterion= needs batches (x, y), or (x1, …, xk, y)",
                got="no data" if batch is None else type(batch).__name__,
                do="pass data=(x, y) or batches of that form, or use loss_fn(model, batch)",
            )
        *inputs, target = batch
        return self.model(*inputs), target

    def _own_loss(self, batch: Any) -> Tensor:
        if batch is None:
            raise DataError("there is no loss to measure: no data", do="pass data= and criterion=")
        if isinstance(batch, Mapping):
            output = self.model(**batch)
        elif isinstance(batch, (tuple, list)):
            output = self.model(*batch)
        else:
            output = self.model(batch)
        loss = getattr(output, "loss", None)
        if loss is None:
            raise LossError(
                "the model's output has no .loss",
                got=type(output).__name__,
                do="pass criterion=, for criterion(model(x), y), or loss_fn=(model, batch) -> loss",
            )
        return loss  # type: ignore[no-any-return]


def evaluate(loss: Loss, leaves: Leaves, batch: Any, device: torch.device) -> Tensor:
    """The checked scalar loss of one batch at ``leaves`` (names as in the unwrapped module).

    Attention runs on the math kernel: the fused ones cannot be differentiated twice.
    """
    lent = {f"model.{name}": leaf for name, leaf in leaves.items()}
    lent |= {f"model.{name}": b.detach().clone() for name, b in loss.model.named_buffers()}
    with sdpa_kernel([SDPBackend.MATH]):
        value = functional_call(loss, lent, (move(batch, device),))
    if not isinstance(value, Tensor) or value.dim() != 0 or not value.is_floating_point():
        shown = (
            f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise LossError(
            "the loss must be a real scalar tensor",
            got=shown,
            do="reduce it, e.g. criterion=nn.MSELoss(reduction='mean')",
        )
    if not value.requires_grad:
        raise LossError(
            "the loss does not depend on the measured parameters",
            do="compute it from the model that is passed in, without detach() or no_grad()",
        )
    return value


def move(batch: Any, device: torch.device) -> Any:
    """``batch`` with its tensors on ``device``; containers keep their types."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return type(batch)({k: move(v, device) for k, v in batch.items()})
    if isinstance(batch, Mapping) and hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(v, device) for v in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(move(v, device) for v in batch)
    return batch


def token_weight(model: nn.Module) -> Callable[[Any], float] | None:
    """For Hugging Face language models: the number of labels that the loss averages over."""
    if not hasattr(model, "config"):
        return None
    shift = "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__

    def count(batch: Any) -> float:
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if not isinstance(labels, Tensor):
            raise DataError("a batch has no labels to weight it by", do="pass weight=")
        counted = labels[..., 1:] if shift and labels.dim() > 1 else labels
        return float((counted != -100).sum())

    return count
