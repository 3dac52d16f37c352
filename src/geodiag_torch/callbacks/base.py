"""What the callbacks share: when to attach, and which records the framework has yet to log.

No failure of a measurement leaves a callback: it becomes a note of a record, or one warning.
"""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from geodiag.core.validation import as_number
from geodiag.errors import ArgumentError, DistributedError, one_line
from geodiag.monitoring.rules import check_rule
from geodiag.monitoring.schedule import Schedule
from geodiag.optimizers.clipping import require_clip_norm
from geodiag.problems import is_of_optimizer, norm_source
from geodiag.records import Header, Record
from geodiag.sharpness import named_estimator
from geodiag.sinks import Sink
from geodiag_torch.attach import attach
from geodiag_torch.optimizer_monitor import OptimizerMonitor
from geodiag_torch.problem import (
    TorchProblem,
    ranks_together,
    refuse_synchronised,
    synchronised,
    takes_ranks,
)
from geodiag_torch.ranks import is_outside


class _KeptHeader(Sink):
    """Keeps the header of a run until it is asked for."""

    header: Header | None = None

    def start(self, header: Header) -> None:
        self.header = header

    def write(self, record: Record) -> None:
        return None


class Attachment:
    """One monitor for one training, made once the optimizer, the model and the data are there.

    Args:
        data: probe data; None: the first training batch.
        log: as for :func:`geodiag_torch.attach`.
        arguments: the others of :func:`geodiag_torch.attach`.

    Raises:
        GeodiagError: an argument cannot be used. Later on nothing is raised.
    """

    def __init__(self, data: Any, log: Any, **arguments: Any) -> None:
        _check(arguments)
        self.data, self._arguments, self._header = data, arguments, _KeptHeader()
        given = log if isinstance(log, (list, tuple)) else [] if log is None else [log]
        self._log = [*given, self._header]
        self.monitor: OptimizerMonitor | None = None
        self.clips: float | None = None  # the norm at which the trainer itself clips gradients
        self.together = False  # whether all ranks measure, and have the same records
        self._past: list[Record] = []  # of trainings that have ended
        self._taken = 0
        self._warned: set[str] = set()

    @property
    def records(self) -> list[Record]:
        """All so far."""
        return self._past + ([] if self.monitor is None else self.monitor.records)

    def takes_part(self, model: torch.nn.Module, first: bool) -> bool:
        """Whether this rank measures: the ``first`` alone, or each where the model takes all.

        Of a ``process_group`` that was given, each rank in it does.

        With layers that would wait for other ranks none does, which is a warning on every rank.
        """
        with self.warning("nothing is measured"):
            refuse_synchronised(synchronised(model))
            group = self._arguments.get("process_group")
            if is_outside(group):
                return False
            self.together = takes_ranks(model, group)
            return self.together or first or group is not None
        return False

    def attach(
        self,
        optimizer: Any,
        model: torch.nn.Module,
        batch: Any,
        steps: int,
        remark: str = "",
        **instead: Any,
    ) -> None:
        """Attach, with ``batch`` for the probe data where none was given.

        ``remark``: for the first record. ``instead``: arguments in place of those given before.

        Raises:
            GeodiagError: what the measurement met, on every rank that takes part; an exception of
                the loss is raised as it is.
        """
        arguments = self._arguments | instead
        stated = getattr(arguments.get("update"), "scale", 1.0) != 1.0
        if arguments.get("clip_norm") is None and not stated:
            arguments["clip_norm"] = self.clips
        ranks = None
        if self.together:
            ranks = ranks_together(model, arguments.get("process_group"))
        try:
            self.monitor = attach(
                optimizer,
                model,
                # In a list, which means batches: a batch may itself be one.
                data=[copy.deepcopy(batch)] if self.data is None else self.data,
                log=self._log,
                **arguments,
            )
            self.monitor.steps = steps
            self.monitor.remark(remark)
            if ranks is not None:
                ranks.any(False)  # another rank may have failed where this one has not
        except Exception as e:
            self.detach()
            known = isinstance(e, DistributedError) or getattr(e, "announced", False)
            if ranks is not None and not known:
                with suppress(DistributedError):
                    ranks.announce(e)
            raise

    def detach(self) -> None:
        """Detach the monitor; the records stay."""
        if self.monitor is not None:
            with self.warning("the monitor failed to close"):
                self.monitor.detach()
            self._past, self.monitor = self.records, None

    def new_records(self) -> list[Record]:
        """The records since the last call."""
        found = self.records[self._taken :]
        self._taken += len(found)
        return found

    def new_header(self) -> Header | None:
        """The header of a run that began since the last call, on the rank that writes ``log=``."""
        found, self._header.header = self._header.header, None
        return found

    @contextmanager
    def warning(self, what: str) -> Iterator[None]:
        """An exception in the ``with`` block ends the block and becomes a warning, once."""
        try:
            yield
        except Exception as e:
            self.warn(what, one_line(e))

    def warn(self, what: str, why: str) -> None:
        """One warning of each kind; on stderr if warnings are errors."""
        if what in self._warned:
            return
        self._warned.add(what)
        text = f"geodiag: {what}: {why}"
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:
            print(text, file=sys.stderr)


def clip_norm(stated: Any) -> float | None:
    """The norm to which a trainer clips, by its own option; None where it does not."""
    limit = as_number(stated)
    return limit if limit is not None and limit > 0.0 else None


def _check(arguments: dict[str, Any]) -> None:
    """Raise for what can be known to be wrong before there is a model."""
    known = {*inspect.signature(attach).parameters, *inspect.signature(TorchProblem).parameters}
    unknown = sorted(set(arguments) - (known - {"problem_arguments", "params"}))
    if unknown:
        raise ArgumentError(
            "the callback has no such argument",
            got=", ".join(unknown),
            do="pass those of geodiag_torch.attach",
        )
    if not is_of_optimizer(arguments.get("norm")):
        norm_source(arguments["norm"])
    named_estimator(arguments.get("estimator", "auto"))
    Schedule(arguments["every"], arguments.get("budget"))
    check_rule(None, arguments.get("update"))
    require_clip_norm(arguments.get("clip_norm"), arguments.get("update"))
