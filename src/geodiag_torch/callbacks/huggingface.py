"""A callback for the Trainer of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from geodiag.problems import NormLike
from geodiag.records import Record
from geodiag.sinks import Log, metrics
from geodiag_torch.callbacks.base import Attachment

TrainerCallback: Any = import_module("transformers").TrainerCallback


class HuggingFaceMonitor(TrainerCallback):
    """Measures while a Trainer trains.

        trainer = Trainer(model, args, train_dataset=dataset)
        trainer.add_callback(HuggingFaceMonitor(trainer, every=50))

    The records' numbers go through ``trainer.log``, so to ``state.log_history`` and wherever the
    Trainer reports to, as ``geodiag/sharpness`` and so on. Of several processes the first one
    measures, on its own data; all of them do, together, where parameters are sharded (FSDP2), or
    with ``process_group=``, and have the same records.

    Args:
        trainer: None: they go to ``state.log_history`` alone.
        norm: None: the optimizer's own.
        loss_fn: the loss, ``loss_fn(model, batch)``; default: the model's own.
        data: probe data; None: a copy of the first training batch, as the model gets it.
        every: as for :func:`geodiag_torch.attach`, like ``log``.
        prefix: of each metric's name.
        **arguments: the others of :func:`geodiag_torch.attach`.

    Attributes:
        records: every Record so far.
    """

    def __init__(
        self,
        trainer: Any = None,
        norm: NormLike = None,
        *,
        loss_fn: Callable[..., Any] | None = None,
        data: Any = None,
        every: int | Callable[[int], bool] = 10,
        log: Log = None,
        prefix: str = "geodiag/",
        **arguments: Any,
    ) -> None:
        arguments |= {"norm": norm, "loss_fn": loss_fn, "every": every}
        self._attachment = Attachment(data, log, **arguments)
        self._trainer, self._prefix = trainer, prefix
        self._hook: Any = None  # on the model, until its first batch was seen
        self._batch: Any = None

    @property
    def records(self) -> list[Record]:
        return self._attachment.records

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()  # the last training may have ended in an exception
        if not self._attachment.takes_part(kwargs["model"], state.is_world_process_zero):
            return
        if self._attachment.data is None:
            self._hook = kwargs["model"].register_forward_pre_hook(
                self._keep_first_batch, with_kwargs=True
            )
        else:
            self._attach(state, kwargs)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._batch is not None:
            self._attach(state, kwargs)
            self._batch = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._log(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()
        self._log(state, control)

    def _attach(self, state: Any, kwargs: dict[str, Any]) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self._attachment.attach(optimizer, model, self._batch, state.global_step)

    def _keep_first_batch(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Keep the first training batch. Taking one from the loader would change its order."""
        if not model.training:  # evaluation comes first
            return
        self._hook.remove()
        # With the count of the whole step's tokens the loss would be a part of the batch's mean.
        named = {k: x for k, x in kwargs.items() if k != "num_items_in_batch"}
        self._batch = args or named

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._batch = None
        self._attachment.detach()

    def _log(self, state: Any, control: Any) -> None:
        for record in self._attachment.new_records():
            found = metrics(record, self._prefix)
            if self._trainer is None:
                state.log_history.append({**found, "epoch": state.epoch, "step": state.global_step})
                continue
            asked = control.should_log
            self._trainer.log(found)
            control.should_log = asked  # trainer.log resets it
