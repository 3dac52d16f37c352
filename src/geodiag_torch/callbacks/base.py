"""What the callbacks share: when to attach, and which records the framework has yet to log."""

from __future__ import annotations

import copy
from typing import Any

import torch

from geodiag.records import Record
from geodiag_torch.attach import OptimizerMonitor, attach
from geodiag_torch.problem import refuse_synchronised, synchronised, takes_ranks
from geodiag_torch.ranks import is_outside


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
        self.together = False  # whether all ranks measure, and have the same records
        self._past: list[Record] = []  # of trainings that have ended
        self._taken = 0

    @property
    def records(self) -> list[Record]:
        """All so far."""
        return self._past + ([] if self.monitor is None else self.monitor.records)

    def takes_part(self, model: torch.nn.Module, first: bool) -> bool:
        """Whether this rank measures: the ``first`` alone, or each where the model takes all.

        Raises:
            GeodiagError: on every rank, where one that measured would wait for the others.
        """
        refuse_synchronised(synchronised(model))
        group = self._arguments.get("process_group")
        if is_outside(group):
            return False
        self.together = takes_ranks(model, group)
        return self.together or first

    def attach(self, optimizer: Any, model: torch.nn.Module, batch: Any, steps: int) -> None:
        """Attach, with ``batch`` for the probe data where none was given."""
        self.monitor = attach(
            optimizer,
            model,
            # In a list, which means batches: a batch may itself be one.
            data=[copy.deepcopy(batch)] if self.data is None else self.data,
            log=self._log,
            **self._arguments,
        )
        self.monitor.steps = steps

    def detach(self) -> None:
        """Detach the monitor; the records stay."""
        if self.monitor is not None:
            self.monitor.detach()
            self._past, self.monitor = self.records, None

    def new_records(self) -> list[Record]:
        """The records since the last call."""
        found = self.records[self._taken :]
        self._taken += len(found)
        return found
