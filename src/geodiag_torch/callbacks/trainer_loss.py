"""The loss that a Trainer of Hugging Face transformers trains with, as one to measure.

A measurement computes it many times, and the Trainer must not notice: ``compute_loss`` is called
on a stand-in, which shares the Trainer's attributes except those that a step may change: numbers,
lists and dicts, ``state``, ``control`` and ``log``. Data sets are shared: they may be long lists.
"""

from __future__ import annotations

import collections
import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from geodiag.core.batch_forms import batch_size
from geodiag.errors import DataError
from geodiag_torch.derivatives.batches import shifts_labels
from geodiag_torch.state.names import unwrap

CONTAINERS = (list, dict, set, collections.deque, collections.defaultdict, collections.OrderedDict)
DATA_SETS = ("train_dataset", "eval_dataset")
DEEPEST = 4  # containers in containers that are copied
IGNORED = -100  # marks labels that are left out of a loss


class Watched:
    """``compute_loss`` of a Trainer, which first shows the model and the inputs to watchers."""

    def __init__(self, own: Callable[..., Any], of_instance: bool) -> None:
        self.own, self.of_instance = own, of_instance
        self.watchers: list[Callable[[Any, Any], None]] = []
        functools.update_wrapper(self, own)

    def __call__(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        for watch in self.watchers:
            watch(model, inputs)
        return self.own(model, inputs, *args, **kwargs)


@contextmanager
def watched(trainer: Any, watch: Callable[[Any, Any], None]) -> Iterator[None]:
    """In it, ``watch(model, inputs)`` is called before each ``compute_loss``."""
    found = trainer.compute_loss
    if not isinstance(found, Watched):
        found = trainer.compute_loss = Watched(found, "compute_loss" in vars(trainer))
    found.watchers.append(watch)
    try:
        yield
    finally:
        found.watchers.remove(watch)
        if not found.watchers and vars(trainer).get("compute_loss") is found:
            del trainer.compute_loss
            if found.of_instance:
                trainer.compute_loss = found.own


def overrides(trainer: Any) -> bool:
    """Whether the Trainer has a ``compute_loss`` of its own."""
    own = _own_compute_loss(trainer)
    return getattr(own, "__func__", own) is not import_module("transformers").Trainer.compute_loss


def _own_compute_loss(trainer: Any) -> Callable[..., Any]:
    found = trainer.compute_loss
    own: Callable[..., Any] = found.own if isinstance(found, Watched) else found
    return own


def is_of_trainer(trainer: Any) -> bool:
    """Whether the Trainer's loss is another one than the model's own."""
    smoother = getattr(trainer, "label_smoother", None)
    given = getattr(trainer, "compute_loss_func", None)
    return smoother is not None or given is not None or overrides(trainer)


def refusal(trainer: Any) -> str | None:
    """Why the Trainer's loss cannot be measured, as a remark on the one that is."""
    if trainer.args.world_size > 1 and overrides(trainer):
        return (
            f"the loss is the model's own, not compute_loss of {type(trainer).__name__}, which may "
            "wait for other ranks"
        )
    return None


def trainer_loss(trainer: Any) -> Callable[[nn.Module, Any], Any]:
    """``loss(model, inputs)``, the mean over one batch of the Trainer's inputs."""

    def loss(model: nn.Module, batch: Any) -> Any:
        if not isinstance(batch, Mapping):
            raise DataError(
                "the Trainer's loss needs batches that are dicts of its inputs",
                got=type(batch).__name__,
                do="pass data= such batches, or loss_fn=",
            )
        stand_in = _stand_in(trainer)
        inputs = copy.copy(batch)  # compute_loss takes the labels out of them
        count = _count(stand_in, batch)
        return stand_in.compute_loss(model, inputs, num_items_in_batch=count)

    return loss


def trainer_weight(trainer: Any) -> Callable[[Any], float | None]:
    """The weight of a batch where there are several: the number of labels, else its length."""

    def weight(batch: Any) -> float | None:
        count = None
        if isinstance(batch, Mapping):
            count = _count(trainer, batch)  # by which the sum is divided
        if isinstance(batch, Mapping) and count is None:
            count = label_count(batch, shifts_labels(unwrap(trainer.model)))
        return batch_size(batch) if count is None else float(count)

    return weight


def label_count(batch: Any, shifted: bool = False) -> Tensor | None:
    """The number of labels in a batch that a loss averages over; None where it has none.

    ``shifted``: a label belongs to the position before it, so the first one of each row to none.
    """
    labels = batch.get("shift_labels", batch.get("labels"))
    if not isinstance(labels, Tensor):
        return None
    counted = labels[..., 1:] if shifted and "shift_labels" not in batch else labels
    return counted.ne(IGNORED).sum()


def _count(trainer: Any, batch: Mapping[str, Any]) -> Tensor | None:
    """What the Trainer passes as ``num_items_in_batch`` for a step of this batch alone."""
    asked = getattr(trainer, "model_accepts_loss_kwargs", False)
    if not asked and getattr(trainer, "compute_loss_func", None) is None:
        return None
    return label_count(batch, getattr(trainer, "_loss_shifts_labels", False))


def _stand_in(trainer: Any) -> Any:
    found = object.__new__(type(trainer))
    for name, value in vars(trainer).items():
        vars(found)[name] = value if name in DATA_SETS else _own(value)
    vars(found).pop("compute_loss", None)
    own = _own_compute_loss(trainer)
    if not isinstance(own, types.MethodType) or own.__self__ is not trainer:
        found.compute_loss = own  # a plain function of the instance
    else:
        found.compute_loss = types.MethodType(own.__func__, found)
    for name in ("state", "control", "args"):
        vars(found)[name] = copy.copy(getattr(trainer, name))
    found.state.log_history = list(found.state.log_history)
    found.args.average_tokens_across_devices = False  # the mean of this rank's batch
    found.log = _nothing
    return found


def _own(x: Any, depth: int = 0) -> Any:
    """A copy of a container, and of those in it; tensors, modules and other objects are shared."""
    if type(x) not in CONTAINERS or depth == DEEPEST:
        return x
    found = copy.copy(x)
    if isinstance(x, dict):
        found.update({key: _own(value, depth + 1) for key, value in x.items()})
    elif not isinstance(x, set):
        for i, value in enumerate(x):
            found[i] = _own(value, depth + 1)
    return found


def _nothing(*args: Any, **kwargs: Any) -> None:
    """In place of ``log``."""
