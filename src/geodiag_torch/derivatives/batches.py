"""Batches of torch: moved to a device, and weighted by what a loss averages over."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from geodiag.core.batch_forms import DEEPEST, arrays_of, attributes, batch_size, holds_arrays
from geodiag.errors import DataError

# Losses whose mean is over the targets that are left, or over all entries of the targets.
LEAVING_OUT = (nn.CrossEntropyLoss, nn.NLLLoss), ("cross_entropy", "nll_loss")
ELEMENTWISE = (
    (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss),
    ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
     "binary_cross_entropy_with_logits"),
)  # fmt: skip
IGNORED = -100  # by default


def wide(x: Tensor) -> Tensor:
    """``x``, in 32 bits where it is in fewer."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def move(
    batch: Any, device: torch.device, depth: int = 0, widened: bool = False, copied: bool = False
) -> Any:
    """``batch`` with its tensors on ``device``; containers and objects keep their types.

    What was given is not changed. ``widened``: with floating tensors in at least 32 bits.
    ``copied``: no tensor shares memory with those given.

    Raises:
        DataError: containers are nested without end, as in a list that holds itself.
    """
    if depth > DEEPEST:
        raise DataError("a batch holds containers that are nested without end")

    def inner(x: Any) -> Any:
        return move(x, device, depth + 1, widened, copied)

    if isinstance(batch, Tensor):
        moved = wide(batch.to(device)) if widened else batch.to(device)
        return moved.clone() if moved.is_inference() or copied else moved
    if isinstance(batch, Mapping):
        return _moved_mapping(batch, device, inner)
    if isinstance(batch, tuple) and hasattr(batch, "_fields") and not hasattr(batch, "to"):
        return type(batch)(*map(inner, batch))
    if isinstance(batch, (tuple, list)) and not hasattr(batch, "to"):
        return type(batch)(map(inner, batch))
    return _moved_object(batch, device, inner)


def _moved_mapping(
    batch: Mapping[Any, Any], device: torch.device, inner: Callable[..., Any]
) -> Any:
    moved: Any = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
    if hasattr(moved, "to"):
        moved = _to(moved, device)
    for key, value in [*moved.items()]:
        new = inner(value)
        if new is not value:
            moved[key] = new
    return moved


def _moved_object(batch: Any, device: torch.device, inner: Callable[..., Any]) -> Any:
    if isinstance(batch, (type, nn.Module)):
        return batch.to(device) if isinstance(batch, nn.Module) else batch
    moved = batch
    if hasattr(batch, "to"):
        moved = _to(copy.copy(batch), device)
    if not holds_arrays(moved):
        return moved
    new = {
        name: inner(x)
        for name, x in attributes(moved).items()
        if isinstance(x, (Tensor, Mapping, tuple, list))
    }
    new = {name: x for name, x in new.items() if x is not getattr(moved, name)}
    moved = copy.copy(batch) if new and moved is batch else moved
    for name, x in new.items():
        object.__setattr__(moved, name, x)  # frozen dataclasses too
    return moved


def _to(copied: Any, device: torch.device) -> Any:
    """The copy on ``device``: some objects move themselves, some of those return nothing."""
    moved = copied.to(device)
    return copied if moved is None else moved


def foreign_array(batch: Any) -> str | None:
    """The type of an array in the batch that is not torch's; None where there is none."""
    foreign = (x for x in arrays_of(batch) if not isinstance(x, Tensor))
    found = next(foreign, None)
    return None if found is None else f"{type(found).__module__}.{type(found).__name__}"


def counting_weight(criterion: Any, alone: bool) -> Callable[[Any], float | None] | None:
    """The weight of a batch (x, y) for a criterion that is known to average over its targets.

    That of targets that ``ignore_index`` leaves, with their class weights, or of all entries.
    None for other criteria, whose batches weigh by their length. ``alone`` it is in units of one
    example of the first batch, so that batches of equal examples weigh their length exactly; with
    other ranks the unit must be theirs too.
    """
    options = criterion.keywords if isinstance(criterion, functools.partial) else {}
    inner = criterion.func if isinstance(criterion, functools.partial) else criterion
    if getattr(inner, "reduction", options.get("reduction", "mean")) != "mean":
        return None
    leaves_out = _is_one_of(inner, LEAVING_OUT)
    if not leaves_out and not _is_one_of(inner, ELEMENTWISE):
        return None
    ignored = getattr(inner, "ignore_index", options.get("ignore_index", IGNORED))
    weights = getattr(inner, "weight", options.get("weight"))
    unit: list[int] = [] if alone else [1]

    def weight(batch: Any) -> float | None:
        target = batch[-1] if isinstance(batch, (tuple, list)) and batch else None
        if not isinstance(target, Tensor) or target.is_sparse:
            return batch_size(batch)
        if not unit:
            unit.append(max(1, math.prod(target.shape[1:])))
        if leaves_out and not target.is_floating_point():
            return _left(target, ignored, weights) / unit[0]
        return target.numel() / unit[0]

    return weight


def _is_one_of(criterion: Any, known: tuple[tuple[type, ...], tuple[str, ...]]) -> bool:
    kinds, names = known
    functions = [getattr(nn.functional, name) for name in names]
    return type(criterion) in kinds or any(criterion is f for f in functions)


def _left(target: Tensor, ignored: int, weights: Tensor | None) -> float:
    left = target != ignored
    if weights is None:
        return float(left.sum())
    return float(weights.to(target.device)[target[left]].sum())


def shifts_labels(model: nn.Module) -> bool:
    """For Hugging Face models: whether a label belongs to the position before it."""
    return "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__


def token_weight(model: nn.Module) -> Callable[[Any], float] | None:
    """For Hugging Face language models: the number of labels that the loss averages over."""
    if not hasattr(model, "config"):
        return None
    shift = shifts_labels(model)

    def count(batch: Any) -> float:
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if not isinstance(labels, Tensor):
            raise DataError("a batch has no labels to weight it by", do="pass weight=")
        counted = labels[..., 1:] if shift and labels.dim() > 1 else labels
        return float((counted != -100).sum())

    return count
