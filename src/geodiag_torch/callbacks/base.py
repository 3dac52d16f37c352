"""What the callbacks share: when to attach, and records on their way to the framework's log."""

from __future__ import annotations

import copy
from typing import Any

import torch

from geodiag.records import Record
from geodiag_torch.attach import OptimizerMonitor, attach
from geodiag_torch.problem import takes_ranks


class Attachment:
    """One monitor for one training, made once the optimizer, the model and the data are there.

    Args:
        data: probe data; None: the first training batch.
        log: as for :func:`geodiag_torch.attach`.
        arguments: the others of :func:`geodiag_torch.attach`.
    """

    def __init__(self, data: Any, log: Any, **arguments: Any) -> None:
        self.data, self._log, self._arguments = data, log, arguments
        self.monitor: OptimizerMonitor | None = None
        self.records: list[Record] = []
        self._fresh: list[Record] = []

    def takes_part(self, model: torch.nn.Module, first: bool) -> bool:
        """Whether this rank measures: the ``first`` alone, or each where the model takes all."""
        return takes_ranks(model, self._arguments.get("process_group")) or first

    def attach(self, optimizer: Any, model: torch.nn.Module, batch: Any, steps: int) -> None:
        """Attach, with ``batch`` for the probe data where none was given."""
        log = self._log if isinstance(self._log, (list, tuple)) else [self._log]
        sinks = [sink for sink in log if sink is not None]
        self.monitor = attach(
            optimizer,
            model,
            # In a list, which means batches: a batch may itself be one.
            data=[copy.deepcopy(batch)] if self.data is None else self.data,
            log=[*sinks, self._take],
            **self._arguments,
        )
        self.monitor.steps = steps

    def detach(self) -> None:
        """Take the monitor off; the records stay."""
        if self.monitor is not None:
            self.monitor.detach()
            self.monitor = None

    def fresh(self) -> list[Record]:
        """The records since the last call."""
        found, self._fresh = self._fresh, []
        return found

    def _take(self, record: Record) -> None:
        self.records.append(record)
        self._fresh.append(record)
