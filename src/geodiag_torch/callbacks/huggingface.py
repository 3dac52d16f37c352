"""A callback for the Trainer of Hugging Face transformers."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import Any

from geodiag.errors import one_line
from geodiag.problems import NormLike
from geodiag.records import Header, Record
from geodiag.sinks import Log, MLflow, metrics
from geodiag.sinks.base import config, header_text
from geodiag_torch.callbacks.base import Attachment, clip_norm
from geodiag_torch.callbacks.trainer_loss import (
    is_of_trainer,
    refusal,
    trainer_loss,
    trainer_weight,
    watched,
)

TrainerCallback: Any = import_module("transformers").TrainerCallback


class HuggingFaceMonitor(TrainerCallback):
    """Measures while a Trainer trains.

        trainer = Trainer(model, args, train_dataset=dataset)
        trainer.add_callback(HuggingFaceMonitor(trainer, every=50))

    The records' numbers go through ``trainer.log``, so to ``state.log_history`` and wherever the
    Trainer reports to, as ``geodiag/sharpness`` and so on; what is known of the run (norm,
    optimizer, model, versions) goes to W&B's config, MLflow's parameters, or a text in TensorBoard.
    Of several processes the first one measures, on its own data; all of them do, together, where
    parameters are sharded (FSDP2), or with ``process_group=``, and have the same records. What a
    measurement meets becomes a record's note or one warning; it never ends training.

    The loss is the Trainer's own, with label smoothing, ``compute_loss_func`` or an overridden
    ``compute_loss``, as the mean over one batch; where it is the model's instead, a note says so.
    An overridden ``compute_loss`` works on copies of the Trainer's numbers, lists and dicts, and
    without ``log``; what else it changes (other objects, files) is changed by measurements too.

    Args:
        trainer: None: records go to ``state.log_history`` alone, and the loss is the model's own.
        norm: None: the optimizer's own.
        loss_fn: another loss, ``loss_fn(model, batch)``.
        data: probe data; None: a copy of the first training batch, with its labels.
        every: as for :func:`geodiag_torch.attach`, like ``log``.
        prefix: of each metric's name.
        **arguments: the others of :func:`geodiag_torch.attach`.

    Attributes:
        records: every Record so far.

    Raises:
        GeodiagError: an argument cannot be used.
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
        self._own_loss = loss_fn is None and arguments.get("criterion") is None
        means = arguments.get("weight") is None and arguments.get("reduction", "mean") == "mean"
        self._weight = {"weight": trainer_weight(trainer)} if trainer is not None and means else {}
        self._batches: ExitStack = ExitStack()  # what watches for the first batch
        self._inputs: Any = None  # the first batch as the Trainer's loss gets it
        self._batch: Any = None  # and as the model does
        self._waiting = False  # for it

    @property
    def records(self) -> list[Record]:
        return self._attachment.records

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()  # the last training may have ended in an exception
        self._attachment.clips = clip_norm(getattr(args, "max_grad_norm", None))
        if not self._attachment.takes_part(kwargs["model"], state.is_world_process_zero):
            return
        if self._attachment.data is not None:
            self._attach(state, kwargs)
            return
        self._waiting = True
        hook = kwargs["model"].register_forward_pre_hook(self._keep_batch, with_kwargs=True)
        self._batches.callback(hook.remove)
        if self._trainer is not None:
            self._batches.enter_context(watched(self._trainer, self._keep_inputs))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._waiting:
            return
        self._waiting = False
        self._batches.close()
        if self._batch is None and self._inputs is None:
            self._attachment.warn("nothing is measured", "no training batch reached the model")
        else:
            self._attach(state, kwargs)
        self._batch = self._inputs = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._log(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()
        self._log(state, control)

    def _attach(self, state: Any, kwargs: dict[str, Any]) -> None:
        """Attach with the Trainer's loss, else with the model's own; else warn."""
        trainer, attach = self._trainer, self._attachment.attach
        optimizer, model, step = kwargs.get("optimizer"), kwargs["model"], state.global_step
        batch = self._batch if self._inputs is None else self._inputs
        remark = ""
        if self._own_loss and trainer is None:
            remark = (
                "the loss is the model's own; for the Trainer's pass HuggingFaceMonitor(trainer)"
            )
        elif self._own_loss:
            with self._attachment.warning("the Trainer's loss is not known"):
                remark = refusal(trainer) or ""
                if is_of_trainer(trainer) and not remark:
                    own: dict[str, Any] = {"loss_fn": trainer_loss(trainer)} | self._weight
                    try:
                        attach(optimizer, model, batch, step, **own)
                        return
                    except Exception as e:
                        remark = f"the loss is the model's own: the Trainer's failed: {one_line(e)}"
        if self._own_loss and "labels" in (self._batch or ()):
            batch = self._batch
        with self._attachment.warning(f"nothing is measured{'; ' * bool(remark)}{remark}"):
            attach(optimizer, model, batch, step, remark)

    def _keep_batch(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Keep the first training batch. Taking one from the loader would change its order."""
        if self._batch is None and model.training:  # evaluation may come first
            # With the count of the whole step's tokens the loss would be a part of the batch's.
            named = {k: x for k, x in kwargs.items() if k != "num_items_in_batch"}
            self._batch = args or named

    def _keep_inputs(self, model: Any, inputs: Any) -> None:
        """The same, with what the Trainer takes out before the model sees it."""
        with self._attachment.warning("the Trainer's first batch is not known"):
            if self._inputs is None and model.training:
                self._inputs = copy.copy(inputs)

    def _stop(self) -> None:
        self._batches.close()
        self._batch, self._inputs, self._waiting = None, None, False
        self._attachment.detach()

    def _log(self, state: Any, control: Any) -> None:
        header = self._attachment.new_header()
        if header is not None and self._trainer is not None and state.is_world_process_zero:
            with self._attachment.warning("the Trainer's reporters failed to log the run"):
                _describe(self._trainer.callback_handler.callbacks, header, self._prefix)
        for record in self._attachment.new_records():
            found = metrics(record, self._prefix)
            if self._trainer is None:
                state.log_history.append({**found, "epoch": state.epoch, "step": state.global_step})
                continue
            asked = control.should_log
            with self._attachment.warning("the Trainer failed to log a record"):
                self._trainer.log(found)
            control.should_log = asked  # trainer.log resets it


def _describe(reporters: Sequence[Any], header: Header, prefix: str) -> None:
    """The run's header, for those of the Trainer's reporters that take one."""
    kinds = {kind.__name__ for each in reporters for kind in type(each).__mro__}
    wandb, mlflow = sys.modules.get("wandb"), sys.modules.get("mlflow")
    for each in reporters:
        writer = getattr(each, "tb_writer", None)
        if writer is not None:
            writer.add_text(prefix + "run", header_text(header))
    if "WandbCallback" in kinds and wandb is not None and wandb.run is not None:
        wandb.run.config.update(config(header, prefix), allow_val_change=True)
    active = mlflow.active_run() if "MLflowCallback" in kinds and mlflow is not None else None
    if active is not None:
        MLflow(active.info.run_id, prefix=prefix).describe(header)
