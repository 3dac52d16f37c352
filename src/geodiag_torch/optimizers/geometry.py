"""The live geometry of a torch optimizer: its norm and its update rule at each measurement."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping

import torch
from torch.optim import Optimizer

from geodiag.core.spaces import Space
from geodiag.errors import ArgumentError, NormError
from geodiag.norms import Norm
from geodiag.optimizers.geometry import Geometry, unknown_geometry
from geodiag.optimizers.thresholds import Update
from geodiag.problems import as_norm
from geodiag_torch.optimizers.readers import Entry, reader_of


class LiveGeometry:
    """The current geometry of an optimizer on the measured parameters.

    Args:
        optimizer: held weakly.
        parameters: name → parameter, of those measured, all of them in the optimizer.
        space: theirs.
        requested: a norm to measure in, instead of the optimizer's.
        live: a function that returns such a norm, called at each measurement.

    Raises:
        ArgumentError: neither is given, and the optimizer's norm is not known.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, torch.Tensor],
        space: Space,
        requested: Norm | None = None,
        live: Callable[[], Norm] | None = None,
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._names = {id(p): name for name, p in parameters.items()}
        self._space, self._requested, self._live = space, requested, live
        self._kind = type(optimizer).__name__
        self._reader = reader_of(optimizer)
        self._compared: dict[Hashable, bool] = {}
        if requested is None and live is None:
            self._read()

    @property
    def changes(self) -> bool:
        """Whether the norm must be read again at each measurement."""
        if self._requested is not None or self._live is not None:
            return self._live is not None
        several = len({id(e.group) for e in self._entries()}) > 1
        return several or self._read().family.stateful

    def norm(self) -> Norm:
        """The norm to measure in now: the requested one, or the optimizer's.

        Raises:
            NormError: the optimizer's state does not determine it yet.
        """
        if self._live is not None:
            self._requested = as_norm(self._live())
        return self._read().norm() if self._requested is None else self._requested

    def update(self, step: int) -> Update:
        """The current update rule, for S in the norm that is measured."""
        entries = self._entries()
        try:
            return self._read(entries).update(self._requested)
        except (ArgumentError, NormError) as e:
            return Update(float(entries[0].group["lr"]), unknown=e.what)

    def _read(self, entries: list[Entry] | None = None) -> Geometry:
        if self._reader is None:
            raise unknown_geometry(self._kind)
        slots = [self._reader(entry) for entry in entries or self._entries()]
        return Geometry(slots, self._space, self._kind, self._compared)

    def _entries(self) -> list[Entry]:
        optimizer = self._optimizer()
        if optimizer is None:
            raise ArgumentError("the optimizer is gone", do="attach to the new one")
        held = [(group, p) for group in optimizer.param_groups for p in group["params"]]
        whole = all(id(p) in self._names for _, p in held if p.requires_grad)
        return [
            Entry(self._names[id(p)], p, optimizer, group, optimizer.state.get(p, {}), whole)
            for group, p in held
            if id(p) in self._names
        ]
