"""A Lightning callback: ``Trainer(callbacks=[LightningMonitor(criterion=...)])``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from geodiag.core.validation import is_whole
from geodiag.errors import ArgumentError, shown
from geodiag.problems import NormLike
from geodiag.records import Header, Record
from geodiag.sinks import Log, metrics
from geodiag.sinks.base import config, header_text
from geodiag_torch.callbacks.base import Attachment, clip_norm


def _callback() -> Any:
    """The base class, from whichever of the two packages the user has imported."""
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        return import_module("pytorch_lightning").Callback
    try:
        return import_module("lightning.pytorch").Callback
    except ModuleNotFoundError:
        return import_module("pytorch_lightning").Callback


class LightningMonitor(_callback()):  # type: ignore[misc]
    """Measures while a Lightning Trainer fits.

    The records' numbers go to every logger of the Trainer, at the optimizer's own steps, and to
    ``trainer.callback_metrics``, as ``geodiag/sharpness`` and so on; what is known of the run goes
    to the loggers' hyperparameters, or is a text in TensorBoard. The module is measured in the
    precision of its parameters, and through its ``forward``: ``training_step``, which may log and
    update metrics, is not called. Of several ranks rank zero measures, on its own data; all of
    them do, together, where parameters are sharded (fully_shard), or with ``process_group=``, and
    have the same records. What a measurement meets becomes a record's note or one warning; it never
    ends training.

    Args:
        norm: None: the optimizer's own.
        criterion: the loss, ``criterion(module(x), y)``.
        loss_fn: or ``loss_fn(module, batch)``.
        data: probe data; None: a copy of the first training batch.
        optimizer: the index of one of the module's optimizers; or those of several in a list, whose
            step is then measured as one.
        every: as for :func:`geodiag_torch.attach`, like ``log``.
        prefix: of each metric's name.
        **arguments: the others of :func:`geodiag_torch.attach`.

    Attributes:
        records: every Record so far.

    Raises:
        GeodiagError: an argument cannot be used, or neither loss is given.
    """

    def __init__(
        self,
        norm: NormLike = None,
        *,
        criterion: Callable[..., Any] | None = None,
        loss_fn: Callable[..., Any] | None = None,
        data: Any = None,
        optimizer: int | Sequence[int] = 0,
        every: int | Callable[[int], bool] = 10,
        log: Log = None,
        prefix: str = "geodiag/",
        **arguments: Any,
    ) -> None:
        super().__init__()
        if (criterion is None) == (loss_fn is None):
            raise ArgumentError(
                "LightningMonitor needs the loss to measure",
                do="pass criterion(module(x), y) or loss_fn(module, batch)",
            )
        arguments |= {"norm": norm, "criterion": criterion, "loss_fn": loss_fn, "every": every}
        self._attachment = Attachment(data, log, **arguments)
        self._optimizers = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
        if not self._optimizers or not all(map(is_whole, self._optimizers)):
            what = "optimizer= must be the index of an optimizer, or a list of indices"
            raise ArgumentError(what, got=shown(optimizer))
        self._prefix = prefix
        apart = {"prefix": prefix, "sharpness": arguments.get("sharpness", True)}
        usual = {"prefix": "geodiag/", "sharpness": True}
        apart = {name: x for name, x in apart.items() if x != usual[name]}
        self._key = self._generate_state_key(norm=repr(norm), optimizer=optimizer, **apart)
        self._seen = False  # whether this fit has begun
        self._steps: int | None = None  # seen before this fit, where a checkpoint says so

    @property
    def records(self) -> list[Record]:
        return self._attachment.records

    @property
    def state_key(self) -> str:
        """Of norm, optimizer, prefix and mode: a Trainer may have several of these callbacks."""
        return str(self._key)

    def state_dict(self) -> dict[str, Any]:
        """The number of the optimizer's steps. A resumed run starts with a cold search for S."""
        monitor = self._attachment.monitor
        return {"steps": self._steps if monitor is None else monitor.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._seen:
            return
        self._seen = True
        if not self._attachment.takes_part(pl_module, trainer.is_global_zero):
            return
        with self._attachment.warning("nothing is measured"):
            count = len(trainer.optimizers)
            if not all(0 <= i < count for i in self._optimizers):
                raise ArgumentError(
                    "the module has no such optimizer",
                    got=f"optimizer={shown(self._optimizers)} of {count}",
                )
            steps = trainer.global_step // count if self._steps is None else self._steps
            optimizers = [trainer.optimizers[i] for i in self._optimizers]
            self._attachment.clips = _clips_at(trainer)
            self._attachment.attach(optimizers, pl_module, batch, steps)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for record in self._attachment.new_records():
            found = metrics(record, self._prefix)
            self._to_loggers(trainer, record)
            with self._attachment.warning("Lightning failed to log a record"):
                pl_module.log_dict(
                    found,
                    logger=False,
                    on_step=True,
                    on_epoch=False,
                    rank_zero_only=not self._attachment.together,
                    batch_size=1,
                )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._end(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._end(trainer)

    def _end(self, trainer: Any) -> None:
        monitor = self._attachment.monitor
        self._steps = self._steps if monitor is None else monitor.steps
        self._attachment.detach()
        self._seen = False
        for record in self._attachment.new_records():
            self._to_loggers(trainer, record)

    def _to_loggers(self, trainer: Any, record: Record) -> None:
        header = self._attachment.new_header()
        for logger in trainer.loggers:
            if header is not None:
                with self._attachment.warning(f"{type(logger).__name__} failed to log the run"):
                    _describe(logger, header, self._prefix)
            with self._attachment.warning(f"{type(logger).__name__} failed to log a record"):
                logger.log_metrics(metrics(record, self._prefix), step=record.step)


def _describe(logger: Any, header: Header, prefix: str) -> None:
    """The run's header as hyperparameters; in TensorBoard, which has one set of them, as a text."""
    add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
    if add_text is not None:
        add_text(prefix + "run", header_text(header))
    else:
        logger.log_hyperparams(config(header, prefix))


def _clips_at(trainer: Any) -> float | None:
    """The norm at which the Trainer itself clips gradients, if it does."""
    how = getattr(trainer, "gradient_clip_algorithm", None)
    by_norm = how is None or str(getattr(how, "value", how)) == "norm"
    return clip_norm(getattr(trainer, "gradient_clip_val", None)) if by_norm else None
