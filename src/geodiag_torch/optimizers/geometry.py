"""The live geometry of torch optimizers: norm and update rule at each measurement."""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from geodiag.blocks import Blocks, norm2
from geodiag.core.spaces import Space
from geodiag.core.validation import as_number
from geodiag.errors import ArgumentError, NormError
from geodiag.monitoring.parts import SEVERAL, Part, part_of
from geodiag.monitoring.unmeasured import listed
from geodiag.norms import Norm
from geodiag.optimizers.comparison import UNKNOWN_GRADIENT, Comparison
from geodiag.optimizers.geometry import Geometry
from geodiag.optimizers.joint import compare_all, label_of, parts_of
from geodiag.optimizers.slots import Slot
from geodiag.optimizers.thresholds import Update
from geodiag.problems import NormSource, current_norm
from geodiag_torch.optimizers.readers import Entry, options_of, reader_of
from geodiag_torch.sharding.detection import as_sharded

HIDDEN = ("params", "param_names")  # of a parameter group, in the header of a log


class LiveGeometry:
    """The current geometry of optimizers on the measured parameters.

    Args:
        optimizers: held weakly.
        parameters: name → parameter, of those measured, each of them in one of the optimizers.
        space: theirs.
        source: a norm to measure in instead of the optimizer's, or a function that returns one at
            each measurement.
        required: whether a norm must be known.

    Raises:
        ArgumentError: a norm is required, and without a ``source`` none is known.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        parameters: Mapping[str, torch.Tensor],
        space: Space,
        source: NormSource | None = None,
        required: bool = True,
    ) -> None:
        self._optimizers = [weakref.ref(each) for each in optimizers]
        self._source = source
        self._requested = source if isinstance(source, Norm) else None
        self._kind = " with ".join(type(each).__name__ for each in optimizers)
        self._space = space
        self._taken: dict[int, tuple[list[Slot], list[str]]] = {}
        self._once = False
        self._held: tuple[Mapping[int, str], list[Entry]] = {}, []  # inside of read_once()
        self._joined: Geometry | None = None  # of the slots asked for last
        self.follow(parameters, space)
        if source is None and required:
            self._by_part(self._read())

    def follow(self, parameters: Mapping[str, torch.Tensor], space: Space) -> None:
        """From now on these are measured."""
        self._names = {id(p): name for name, p in parameters.items()}
        if space is not self._space or not hasattr(self, "_compared"):
            self._compared: dict[Hashable, bool] = {}
            self._joined = None
        self._space = space

    @contextmanager
    def read_once(self) -> Iterator[None]:
        """Inside, the optimizers have taken their step: they are read once."""
        self._once = True
        try:
            yield
        finally:
            self._once, self._held, self._joined = False, ({}, []), None

    def of_the_step(self, parameters: Mapping[str, torch.Tensor]) -> bool:
        """Whether the norm of these is known after the step alone: it is that of the state then.

        A function that returns a norm is taken to read the state too, where there is one.
        """
        if isinstance(self._source, Norm):
            return False
        entries = self._entries({id(p): name for name, p in parameters.items()})
        readable = all(e.reader is not None for e in entries)
        return readable and any(s.family.stateful for s in self._read(entries))

    def check(self) -> None:
        """Raise a GeodiagError where the norm, or that of a part, cannot be used."""
        if parts := self.parts():
            for part in parts.values():
                part.norm.bind(self._space.select(part.names))
        else:
            self.norm().bind(self._space)

    def parts(self) -> dict[str, Part]:
        """The parts of several geometries that no norm joins; empty where one norm is measured."""
        if self._source is not None:
            return {}
        found = self._by_part(self._read())
        if len(found) == 1:
            return {}
        return {label_of(part.slots): part_of(part) for part in found}

    def describe(self) -> dict[str, object]:
        """The optimizer's name and the hyper-parameters of its groups, for the header of a log."""
        groups = [group for each in alive(self._optimizers) for group in each.param_groups]
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
        return self._geometry(self._read()).norm() if self._requested is None else self._requested

    def update(self, step: int) -> Update:
        """The current update rule, for S in the norm that is measured."""
        entries = self._entries()
        try:
            slots = self._read()
            if self._source is None and len(parts_of(slots)) > 1:
                return Update(slots[0].lr, unknown=SEVERAL)
            return self._geometry(slots).update(self._requested)
        except (ArgumentError, NormError) as e:
            return Update(float(entries[0].group["lr"]), unknown=e.what)

    def took(self, optimizer: Optimizer) -> None:
        """Keep what an optimizer has used in its step: others may follow before a comparison."""
        own = [e for e in self._entries() if e.optimizer is optimizer]
        moving = [e for e in own if e.param.grad is not None]
        self._taken[id(optimizer)] = self._read(moving), [e.name for e in own]

    def received(self, optimizer: Optimizer) -> tuple[float, float]:
        """The lengths of what an optimizer received, and of what is measured of that."""
        own = [p for group in optimizer.param_groups for p in group["params"]]
        return _length(own), _length([p for p in own if id(p) in self._names])

    def compare(self, gradient: Blocks, here: Blocks, there: Blocks) -> dict[str, Comparison]:
        """Whether the step that was taken is that of the rule, for the measured loss.

        ``gradient`` is that of the measured loss, at ``here``. Parameters that the optimizer got no
        gradient of stay where they are.

        Returns:
            What is said of each part, by ``joins`` of its families; of the whole step under "".
        """
        entries, taken = self._entries(), self._taken
        self._taken = {}
        if len(self._optimizers) == 1:
            self.took(entries[0].optimizer)
            taken, self._taken = self._taken, {}
        moving = [s for slots, _ in taken.values() for s in slots]
        own = {name for _, names in taken.values() for name in names}
        unit = max(torch.finfo(e.param.dtype).eps for e in entries)
        found = {}
        for slots in parts_of(moving):
            names = [s.name for s in slots]
            space = self._space if len(names) == len(entries) else self._space.select(names)
            w, new, g = ({name: x[name] for name in names} for x in (here, there, gradient))
            said = compare_all(slots, space, w, new, g, unit)
            if said.unknown and all(bool((new[name] == x).all()) for name, x in w.items()):
                said = Comparison()  # a step that was left out, as a GradScaler does
            found[slots[0].family.joins] = said
        if not found:
            return {"": Comparison("", UNKNOWN_GRADIENT)}
        used = {s.name for s in moving}
        idle = [n for n, g in gradient.items() if n in own - used and bool((g != 0).any())]
        if idle and not any(said.unknown or said.caveat for said in found.values()):
            return {"": Comparison(f"the step leaves {listed(idle)} where they are")}
        return found

    def _geometry(self, slots: list[Slot]) -> Geometry:
        known = self._joined
        if known is None or list(map(id, known.slots)) != list(map(id, slots)):
            known = Geometry(slots, self._space, self._kind, self._compared)
            self._joined = known if self._once else None  # its slots hold gradients
        return known

    def _by_part(self, slots: list[Slot]) -> list[Geometry]:
        """The geometries of the parts; one where all have one norm."""
        parts = parts_of(slots)
        if len(parts) == 1:
            return [self._geometry(slots)]
        return [Geometry(part, self._space.select(s.name for s in part)) for part in parts]

    def _read(self, entries: list[Entry] | None = None) -> list[Slot]:
        return [e.read() for e in (self._entries() if entries is None else entries)]

    def _entries(self, names: Mapping[int, str] | None = None) -> list[Entry]:
        names = self._names if names is None else names
        if self._once and self._held[0] == names:
            return self._held[1]
        found = [e for each in alive(self._optimizers) for e in _entries(each, names)]
        if self._once:
            self._held = names, found
        return found


def alive(optimizers: Sequence[weakref.ref[Optimizer]]) -> list[Optimizer]:
    """Those that are still there.

    Raises:
        ArgumentError: none is.
    """
    found = [each for each in (ref() for ref in optimizers) if each is not None]
    if not found:
        raise ArgumentError("the optimizer is gone", do="attach to the new one")
    return found


def _entries(optimizer: Optimizer, names: Mapping[int, str]) -> list[Entry]:
    groups, reader = optimizer.param_groups, reader_of(optimizer)
    whole = all(id(p) in names for g in groups for p in g["params"] if p.requires_grad)
    return [
        Entry(names[id(p)], p, optimizer, group, options, optimizer.state.get(p, {}), whole, reader)
        for group, options in zip(groups, map(options_of, groups), strict=True)
        for p in group["params"]
        if id(p) in names
    ]


def _length(parameters: Sequence[torch.Tensor]) -> float:
    """The ℓ2 norm of their gradients."""
    grads = [p.grad.detach() for p in parameters if p.grad is not None]
    plain = [g.coalesce().values() if g.is_sparse else g for g in grads]
    wide = (g.to(torch.promote_types(g.dtype, torch.float32)) for g in plain)  # one at a time
    return math.hypot(*(float(norm2({"gradient": as_sharded(g)})) for g in wide))


def _plain(x: object) -> object:
    """A hyper-parameter as a number or a text."""
    number = as_number(x)
    if isinstance(x, (bool, int, float, str)) or x is None:
        return x
    if number is not None:
        return number
    return [_plain(y) for y in x] if isinstance(x, (tuple, list)) else type(x).__name__
