"""The live geometry of a torch optimizer: its norm and its update rule at each measurement."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping

import torch
from torch.optim import Optimizer

from geodiag.blocks import Blocks
from geodiag.core.spaces import Space
from geodiag.core.validation import as_number
from geodiag.errors import ArgumentError, NormError
from geodiag.monitoring.unmeasured import listed
from geodiag.norms import Norm
from geodiag.optimizers.comparison import UNKNOWN_GRADIENT, Comparison, compare
from geodiag.optimizers.geometry import Geometry, unknown_geometry
from geodiag.optimizers.slots import Slot
from geodiag.optimizers.thresholds import Update
from geodiag.problems import NormSource, current_norm
from geodiag_torch.optimizers.readers import Entry, options_of, reader_of

HIDDEN = ("params", "param_names")  # of a parameter group, in the header of a log


class LiveGeometry:
    """The current geometry of an optimizer on the measured parameters.

    Args:
        optimizer: held weakly.
        parameters: name → parameter, of those measured, all of them in the optimizer.
        space: theirs.
        source: a norm to measure in instead of the optimizer's, or a function that returns one at
            each measurement.
        required: whether a norm must be known.

    Raises:
        ArgumentError: a norm is required, and without a ``source`` none is known.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, torch.Tensor],
        space: Space,
        source: NormSource | None = None,
        required: bool = True,
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._source = source
        self._requested = source if isinstance(source, Norm) else None
        self._kind = type(optimizer).__name__
        self._reader = reader_of(optimizer)
        self._space = space
        self.follow(parameters, space)
        if source is None and required:
            self._read()

    def follow(self, parameters: Mapping[str, torch.Tensor], space: Space) -> None:
        """From now on these are measured."""
        self._names = {id(p): name for name, p in parameters.items()}
        if space is not self._space or not hasattr(self, "_compared"):
            self._compared: dict[Hashable, bool] = {}
        self._space = space

    def of_the_step(self, parameters: Mapping[str, torch.Tensor]) -> bool:
        """Whether the norm of these is known after the step alone: it is that of the state then.

        A function that returns a norm is taken to read the state too, where there is one.
        """
        if isinstance(self._source, Norm) or self._reader is None:
            return False
        entries = self._entries({id(p): name for name, p in parameters.items()})
        return any(self._reader(entry).family.stateful for entry in entries)

    def describe(self) -> dict[str, object]:
        """The optimizer's name and the hyper-parameters of its groups, for the header of a log."""
        optimizer = self._optimizer()
        groups = [] if optimizer is None else optimizer.param_groups
        plain = [{k: _plain(x) for k, x in g.items() if k not in HIDDEN} for g in groups]
        first = plain[0] if plain else {}
        same = {k: x for k, x in first.items() if all(g.get(k) == x for g in plain)}
        rest = [{k: x for k, x in g.items() if k not in same} for g in plain]
        return {"name": self._kind} | same | ({"groups": rest} if any(rest) else {})

    def norm(self) -> Norm:
        """The norm to measure in now: the requested one, or the optimizer's.

        Raises:
            NormError: the optimizer's state does not determine it yet.
        """
        if self._source is not None:
            self._requested = current_norm(self._source)
        return self._read().norm() if self._requested is None else self._requested

    def update(self, step: int) -> Update:
        """The current update rule, for S in the norm that is measured."""
        entries = self._entries()
        try:
            return self._read(entries).update(self._requested)
        except (ArgumentError, NormError) as e:
            return Update(float(entries[0].group["lr"]), unknown=e.what)

    def compare(self, gradient: Blocks, here: Blocks, there: Blocks) -> Comparison:
        """Whether the step that was taken is that of the rule, for the measured loss.

        ``gradient`` is that of the measured loss, at ``here``. Parameters that the optimizer got no
        gradient of stay where they are.
        """
        entries = self._entries()
        moving = {e.name: e for e in entries if e.param.grad is not None}
        if not moving:
            return Comparison("", UNKNOWN_GRADIENT)
        space = self._space if len(moving) == len(entries) else self._space.select(moving)
        slots = [self._read_one(e) for e in moving.values()]
        unit = max(torch.finfo(e.param.dtype).eps for e in entries)
        w, new, g = ({name: x[name] for name in moving} for x in (here, there, gradient))
        said = compare(slots[0].family, slots, space, w, new, g, unit)
        if said.unknown and all(bool((new[name] == x).all()) for name, x in w.items()):
            return Comparison()  # a step that was left out, as a GradScaler does
        idle = [n for n, g in gradient.items() if n not in moving and bool((g != 0).any())]
        if idle and not (said.unknown or said.caveat):
            return Comparison(f"the step leaves {listed(idle)} where they are")
        return said

    def _read_one(self, entry: Entry) -> Slot:
        if self._reader is None:
            raise unknown_geometry(self._kind)
        return self._reader(entry)

    def _read(self, entries: list[Entry] | None = None) -> Geometry:
        slots = [self._read_one(entry) for entry in entries or self._entries()]
        return Geometry(slots, self._space, self._kind, self._compared)

    def _entries(self, names: Mapping[int, str] | None = None) -> list[Entry]:
        optimizer = self._optimizer()
        if optimizer is None:
            raise ArgumentError("the optimizer is gone", do="attach to the new one")
        names, groups = self._names if names is None else names, optimizer.param_groups
        whole = all(id(p) in names for g in groups for p in g["params"] if p.requires_grad)
        return [
            Entry(names[id(p)], p, optimizer, group, options, optimizer.state.get(p, {}), whole)
            for group, options in zip(groups, map(options_of, groups), strict=True)
            for p in group["params"]
            if id(p) in names
        ]


def _plain(x: object) -> object:
    """A hyper-parameter as a number or a text."""
    number = as_number(x)
    if isinstance(x, (bool, int, float, str)) or x is None:
        return x
    if number is not None:
        return number
    return [_plain(y) for y in x] if isinstance(x, (tuple, list)) else type(x).__name__
