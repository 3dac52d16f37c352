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
    """The geometry of an optimizer on the parameters that are measured, as it is when asked.

    Args:
        optimizer: held weakly.
        parameters: name → parameter, of those measured, all of them in the optimizer.
        space: theirs.
        asked: a norm to measure in, instead of the optimizer's.
        live: the same, as a function that is called at each measurement.

    Raises:
        ArgumentError: neither is given, and the optimizer's norm is not known.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, torch.Tensor],
        space: Space,
        asked: Norm | None = None,
        live: Callable[[], Norm] | None = None,
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._names = {id(p): name for name, p in parameters.items()}
        self._space, self._asked, self._live = space, asked, live
        self._kind = type(optimizer).__name__
        self._reader = reader_of(optimizer)
        self._compared: dict[Hashable, bool] = {}
        if asked is None and live is None:
            self._read()

    @property
    def changes(self) -> bool:
        """Whether the norm must be asked for at each measurement."""
        if self._asked is not None or self._live is not None:
            return self._live is not None
        several = len({id(e.group) for e in self._entries()}) > 1
        return several or self._read().family.stateful

    def norm(self) -> Norm:
        """The norm in force now: the one asked for, or the optimizer's.

        Raises:
            NormError: the optimizer's state does not tell it yet.
        """
        if self._live is not None:
            self._asked = as_norm(self._live())
        return self._read().norm() if self._asked is None else self._asked

    def update(self, step: int) -> Update:
        """The update rule in force now, for S measured in that norm."""
        lr = float(self._entries()[0].group["lr"])
        if self._reader is None:
            return Update(lr, unknown=f"the update rule of {self._kind} is not known")
        try:
            return self._read().update(self._asked)
        except (ArgumentError, NormError) as e:
            return Update(lr, unknown=e.what)

    def _read(self) -> Geometry:
        if self._reader is None:
            raise unknown_geometry(self._kind)
        slots = [self._reader(entry) for entry in self._entries()]
        return Geometry(slots, self._space, self._kind, self._compared)

    def _entries(self) -> list[Entry]:
        optimizer = self._optimizer()
        if optimizer is None:
            raise ArgumentError("the optimizer is gone", do="attach to the new one")
        held = [(group, p) for group in optimizer.param_groups for p in group["params"]]
        whole = all(id(p) in self._names for _, p in held if p.requires_grad)
        return [
            Entry(self._names[id(p)], p, optimizer, group, whole)
            for group, p in held
            if id(p) in self._names
        ]
