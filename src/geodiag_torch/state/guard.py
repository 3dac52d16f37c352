"""The state around a loss that a measurement gives back, beside the model's tensors.

A loss may count its calls, keep a hidden state, draw from a generator, or reach modules that the
model does not hold. What is found in the attributes of modules, and by the loss's code, is recorded
where an oracle is made. Each pass starts from it, and afterwards all is as the pass found it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geodiag.core.threads import others
from geodiag.errors import ArgumentError, shown
from geodiag_torch.state.interrupts import Lent
from geodiag_torch.state.places import LARGEST_ARRAY, Memory, Place, State, exchanged, tensors_of
from geodiag_torch.state.reach import SIMPLE, Reach, carries_graph, named
from geodiag_torch.state.writes import Watch, address

T = TypeVar("T")
DEPTH, FURTHER = 1, 10  # how far state is looked for in each measurement, and at first


class Guard:
    """What the passes of one problem give back.

    Args:
        model: the module that is measured.
        functions: the loss, and what else it calls.
        given: modules, generators and objects with state that the user names.

    Attributes:
        modules: what the loss reaches beside the model; treated as the model is.
        updated: the addresses of memory that passes write to, and the ids of such parameters.
        looked: whether a first pass was watched.
        copies_batch: whether the loss writes to its batch.
        draws: whether that pass drew from torch's global generators.
        notes: what cannot be given back.

    Raises:
        ArgumentError: one of the ``given`` has no state.
    """

    def __init__(self, model: nn.Module, functions: Sequence[Any], given: Any = None) -> None:
        self._model, self._functions = model, [f for f in functions if f is not None]
        self._given = _checked(given)
        self.modules: list[nn.Module] = []
        self.updated: set[int] = set()
        self.looked = self.copies_batch = self.draws = False
        self.notes: list[str] = []
        self._further: dict[int, Place] = {}  # those that the first pass has changed
        self._loose: list[Place] = []  # memory that no place holds
        self._written: list[Tensor] = []  # of modules, so that none of their ids is used again
        self._kept: list[nn.Module] = []  # modules that the first pass has changed
        self._last: tuple[Reach, Frozen] | None = None
        self.find()

    def find(self, depth: int = DEPTH) -> Reach:
        """What is reached now."""
        found = Reach(depth)
        for x in self._given:
            if isinstance(x, nn.Module) or not hasattr(x, "load_state_dict"):
                found.visit(x, type(x).__name__, FURTHER)
            else:
                found.places[id(x)] = State(x)
        for f in self._functions:
            found.visit(f, getattr(f, "__name__", type(f).__name__), max(depth, 1))
        found.modules |= {id(m): m for m in self._kept}
        taken: set[int] = set()
        roots = {id(self._model): self._model}
        while pending := [m for i, m in roots.items() if i not in taken]:
            for root in pending:
                for m in (root, *root.modules()):
                    if id(m) not in taken:
                        taken.add(id(m))
                        found.module(m)
            roots = dict(found.modules)
        inner = {id(m) for m in self._model.modules()}
        modules = [m for i, m in found.modules.items() if i not in inner]
        if depth == DEPTH and list(map(id, modules)) != list(map(id, self.modules)):
            self.modules = modules
        return found

    def frozen(self) -> Frozen:
        """The state as it is now; the last one, where nothing has changed since."""
        if self._last is not None:
            found, last = self._last
            if found.is_current() and last.is_current():
                return last
        self._last = None
        found = self.find()
        places = {**found.places, **self._further}
        frozen = Frozen([*places.values(), *self._loose], self.updated)
        if not any(map(carries_graph, frozen.values)):  # or it would live as long
            self._last = found, frozen
        return frozen

    @contextmanager
    def watching(self, batches: Callable[[], set[int]]) -> Iterator[Watch]:
        """A first pass of the problem, inside; all that it changes is given back.

        ``batches``: gives the addresses of the memory of its batches, once it has run.

        Yields:
            What the pass writes to and draws from; other threads' draws are told from its own.
        """
        watch = Watch(tracks=bool(others()))
        if self.looked:
            try:
                with watch:
                    yield watch
            finally:
                watch.restore()
            return
        near, found = self.find(), self.find(FURTHER)
        far = {i: p for i, p in found.places.items() if i not in near.places}
        wide = Frozen(list(far.values()), set())
        modules = {id(self._model): self._model, **near.modules, **found.modules}
        tensors = {i: [*m.parameters(), *m.buffers()] for i, m in modules.items()}
        slots = [t for each in tensors.values() for t in each]
        before = {i: probe() for i, (_, probe) in found.unkept.items()}
        own = _Rebound(slots)
        try:
            with watch, Lent(wide.one_pass()):
                yield watch
                self._further = {i: p for i, p in far.items() if not wide.held_by(p)}
        finally:
            self.updated |= own.restore() | set(watch.written)
            watch.restore()
        updated = self.updated
        changed = {i for i, each in tensors.items() if not updated.isdisjoint(map(address, each))}
        self._written = [t for t in slots if address(t) in updated]
        updated |= set(map(id, self._written))
        self._kept = [m for i, m in found.modules.items() if i in changed and i not in near.modules]
        held = {address(t) for t in slots} | batches()
        for p in (*near.places.values(), *self._further.values()):
            held |= {address(t) for t in tensors_of(p.read()) if _is_plain(t)}
        self._loose = [Memory(x) for i, x in watch.written.items() if i not in held]
        self.copies_batch = not batches().isdisjoint(watch.written)
        lost = [text for i, (text, probe) in found.unkept.items() if probe() != before[i]]
        if lost:
            self.note(
                f"each pass changes what cannot be given back, so that training is not what it is "
                f"without measurements: {named(lost)}; keep it out of the loss that is measured"
            )
        self.looked, self.draws, self._last = True, watch.draws, None

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


class Frozen:
    """What places hold now; plain tensors in them are copied, if they are small or written to."""

    def __init__(self, places: Sequence[Place], updated: set[int]) -> None:
        self.places, self.values = places, [p.read() for p in places]
        self._cloned: list[Tensor] = []
        for value in self.values:
            for t in tensors_of(value):
                small = t.numel() <= LARGEST_ARRAY
                if _is_plain(t) and (small or address(t) in updated):
                    self._cloned.append(t)
        self.clones = {id(t): t.clone() for t in self._cloned}
        self._holding = {id(p): value for p, value in zip(places, self.values, strict=True)}

    def one_pass(self) -> _Pass:
        """All of it, to be lent for one pass."""
        return _Pass(self)

    def is_current(self) -> bool:
        """Whether all places hold this now."""
        return all(p.holds(x) for p, x in zip(self.places, self.values, strict=True)) and all(
            _equal(t, self.clones[id(t)]) for t in self._cloned
        )

    def held_by(self, place: Place) -> bool:
        """Whether the place holds what it did, but for copies of tensors."""
        return place.holds(self._holding[id(place)])


class _Pass:
    """See :class:`geodiag_torch.state.interrupts.Lending`."""

    def __init__(self, frozen: Frozen) -> None:
        self._places = frozen.places
        new = {i: t.clone() for i, t in frozen.clones.items()}
        self._inside = [exchanged(value, new) for value in frozen.values] if new else frozen.values
        self._before: list[Any] = []

    def lend(self) -> None:
        self._before = []
        for p, inside in zip(self._places, self._inside, strict=True):
            here = p.holds(inside)
            self._before.append(inside if here else p.read())
            if not here:
                p.write(inside)

    def give_back(self, for_good: bool) -> None:
        if not for_good:
            self._inside = [p.read() for p in self._places]
        for p, before in zip(self._places, self._before, strict=False):
            if not p.holds(before):
                p.write(before)


class _Rebound:
    """The memory and the gradients of a module's tensors, by which ``.data =`` exchanges them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        unique = {id(t): t for t in tensors if t.layout is torch.strided}
        self._own = [(t, t.data, t.data_ptr()) for t in unique.values()]
        # Another thread may be accumulating into them.
        self._grads = [] if others() else [(t, t.grad) for t in unique.values()]

    def restore(self) -> set[int]:
        """Give them back; the addresses of those that were exchanged."""
        found = set()
        for t, data, where in self._own:
            if t.data_ptr() != where:
                t.data = data
                found.add(address(t))
        for t, grad in self._grads:
            if t.grad is not grad:
                t.grad = grad
        return found


def _is_plain(t: Tensor) -> bool:
    """Whether a copy can take its place: no parameter, no part of a graph, no other kind."""
    plain = type(t) is Tensor and not t.requires_grad and t.layout is torch.strided
    return plain and not t.is_meta


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are alike; False too where torch cannot compare their kind."""
    try:
        return (a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b)
    except (NotImplementedError, RuntimeError):
        return False


def _checked(given: Any) -> list[Any]:
    if given is None:
        return []
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    for x in found:
        plain = isinstance(x, (*SIMPLE, Mapping)) and not isinstance(x, Mapping)
        if plain or isinstance(x, type):
            raise ArgumentError(
                "guard= takes modules, generators, and objects with state",
                got=shown(x),
                do="pass the object that holds it, in a list",
            )
    return found
