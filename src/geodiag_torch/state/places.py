"""Places that hold state in Python: attributes, variables, containers, arrays and generators.

Each can be read, as a shallow copy, and written. They are compared by the identity of what they
hold, and written only where that has changed.
"""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from operator import is_not
from types import CellType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

LARGEST_ARRAY = 2**14  # entries of an array, or of a tensor that is not known to be written to
EMPTY = object()  # what a cell without contents holds


class Place(Protocol):
    """Something that holds state."""

    def read(self) -> Any:
        """A shallow copy of what it holds: a dict, a list, or something that is one value."""

    def write(self, value: Any) -> None:
        """Hold this."""

    def holds(self, value: Any) -> bool:
        """Whether it holds this now."""


class Attributes:
    """The attributes of an object, by its ``__dict__``."""

    def __init__(self, owner: dict[str, Any]) -> None:
        self.owner = owner

    def read(self) -> dict[str, Any]:
        return dict(self.owner)

    def write(self, value: dict[str, Any]) -> None:
        for name in [name for name in self.owner if name not in value]:
            del self.owner[name]
        self.owner.update(value)

    def holds(self, value: dict[str, Any]) -> bool:
        return same(self.owner, value)


class Names:
    """Some names of a namespace: variables of a module, attributes of a class, slots."""

    def __init__(
        self,
        names: Iterable[str],
        get: Callable[[str], Any],
        put: Callable[[str, Any], None],
        drop: Callable[[str], None],
    ) -> None:
        self.names, self._get, self._put, self._drop = [*names], get, put, drop

    def read(self) -> dict[str, Any]:
        found = {name: self._get(name) for name in self.names}
        return {name: x for name, x in found.items() if x is not EMPTY}

    def write(self, value: dict[str, Any]) -> None:
        now = self.read()
        for name in self.names:
            if name not in value and name in now:
                self._drop(name)
            elif name in value and now.get(name, EMPTY) is not value[name]:
                self._put(name, value[name])

    def holds(self, value: dict[str, Any]) -> bool:
        return same(self.read(), value)


def variables(namespace: MutableMapping[str, Any], names: Iterable[str]) -> Names:
    """Variables of a module."""
    get = lambda name: namespace.get(name, EMPTY)  # noqa: E731
    return Names(names, get, namespace.__setitem__, namespace.__delitem__)


def attributes(owner: Any, names: Iterable[str]) -> Names:
    """Attributes of a class, or slots of an object."""
    return Names(
        names,
        lambda name: getattr(owner, name, EMPTY),
        lambda name, x: setattr(owner, name, x),
        lambda name: delattr(owner, name),
    )


class Cell:
    """A variable that a function closes over."""

    def __init__(self, cell: CellType) -> None:
        self.cell = cell

    def read(self) -> list[Any]:
        try:
            return [self.cell.cell_contents]
        except ValueError:
            return []

    def write(self, value: list[Any]) -> None:
        if value:
            self.cell.cell_contents = value[0]
        else:
            del self.cell.cell_contents

    def holds(self, value: list[Any]) -> bool:
        now = self.read()
        return len(now) == len(value) and not any(map(is_not, now, value))


class Entries:
    """A list, a deque or a bytearray."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def read(self) -> Any:
        return bytes(self.x) if isinstance(self.x, bytearray) else list(self.x)

    def write(self, value: Any) -> None:
        if isinstance(self.x, deque):
            self.x.clear()
            self.x.extend(value)
        else:
            self.x[:] = value

    def holds(self, value: Any) -> bool:
        if isinstance(self.x, bytearray):
            return bool(self.x == value)
        return len(self.x) == len(value) and not any(map(is_not, self.x, value))


class Items:
    """A dict of any kind; its order is kept."""

    def __init__(self, x: dict[Any, Any]) -> None:
        self.x, self._kind = x, OrderedDict if isinstance(x, OrderedDict) else dict

    def read(self) -> dict[Any, Any]:
        return dict(self.x.items())

    def write(self, value: dict[Any, Any]) -> None:
        # Those of the subclass may do more: a Counter's update() adds.
        self._kind.clear(self.x)
        self._kind.update(self.x, value)

    def holds(self, value: dict[Any, Any]) -> bool:
        return same(self.x, value)


class Members:
    """A set."""

    def __init__(self, x: set[Any]) -> None:
        self.x = x

    def read(self) -> set[Any]:
        return set(self.x)

    def write(self, value: set[Any]) -> None:
        self.x.clear()
        self.x.update(value)

    def holds(self, value: set[Any]) -> bool:
        return self.x == value


class Contents:
    """The entries of a NumPy array."""

    def __init__(self, x: np.ndarray[Any, Any]) -> None:
        self.x = x

    def read(self) -> Any:
        return self.x.copy()

    def write(self, value: Any) -> None:
        self.x[...] = value

    def holds(self, value: Any) -> bool:
        return bool(self.x.tobytes() == value.tobytes())


class Memory:
    """The memory of a tensor that cannot be exchanged for a copy."""

    def __init__(self, x: Tensor) -> None:
        self._x, memory = x, x.untyped_storage()
        self._bytes = torch.empty(0, dtype=torch.uint8, device=x.device).set_(memory)

    def read(self) -> Tensor:
        return self._bytes.clone()

    def write(self, value: Tensor) -> None:
        self._bytes.copy_(value)
        # What autograd has saved is no longer there.
        torch.autograd.graph.increment_version(self._x)

    def holds(self, value: Tensor) -> bool:
        return torch.equal(self._bytes, value)


class Generator:
    """A generator of random numbers, of torch, of NumPy or of Python."""

    def __init__(self, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        self.read, self.write = get, put

    def holds(self, value: Any) -> bool:
        now = self.read()
        if isinstance(now, Tensor):
            return torch.equal(now, value)
        try:
            return bool(now == value)
        except ValueError:  # of arrays
            return False


class State:
    """An object with ``state_dict()`` and ``load_state_dict()``."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def read(self) -> Any:
        return copy.deepcopy(self.x.state_dict())

    def write(self, value: Any) -> None:
        self.x.load_state_dict(copy.deepcopy(value))

    def holds(self, value: Any) -> bool:
        return False


def generator(x: Any) -> Generator | None:
    """The place of a generator that a pass may draw from; None for others.

    The global ones are not among them: see :mod:`geodiag_torch.state.rng`.
    """
    if isinstance(x, torch.Generator):
        return None if x is torch.default_generator else Generator(x.get_state, x.set_state)
    if isinstance(x, np.random.RandomState):
        if x is np.random.mtrand._rand:
            return None
        return Generator(lambda: x.get_state(legacy=False), x.set_state)
    if isinstance(x, np.random.Generator):
        return generator(x.bit_generator)
    if isinstance(x, np.random.BitGenerator):
        bits: Any = x
        return Generator(lambda: bits.state, lambda state: setattr(bits, "state", state))
    if isinstance(x, random.Random) and not isinstance(x, random.SystemRandom):
        return None if x is random._inst else Generator(x.getstate, x.setstate)
    return None


def container(x: Any) -> Place | None:
    """The place of a builtin container, or of a small array; None for others."""
    if isinstance(x, dict):
        return Items(x)
    if isinstance(x, (list, deque, bytearray)):
        return Entries(x)
    if isinstance(x, set):
        return Members(x)
    if isinstance(x, np.ndarray) and x.dtype != object and x.flags.writeable:
        return Contents(x) if x.size <= LARGEST_ARRAY else None
    return None


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors among what a place holds itself."""
    held = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list)):
        return []
    found = []
    for x in held:
        if isinstance(x, tuple):  # as a hidden state is
            found += [t for t in x if isinstance(t, Tensor)]
        elif isinstance(x, Tensor):
            found.append(x)
    return found


def exchanged(value: Any, new: dict[int, Tensor]) -> Any:
    """What a place holds, with other tensors by the ids of those that they replace."""
    if not new:
        return value

    def inner(x: Any) -> Any:
        if type(x) is tuple and any(id(t) in new for t in x):
            return tuple(new.get(id(t), t) for t in x)
        return new.get(id(x), x)

    if isinstance(value, dict):
        return {name: inner(x) for name, x in value.items()}
    return [inner(x) for x in value] if isinstance(value, list) else value


def same(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    """Whether both hold the same objects by the same names, in one order."""
    return len(a) == len(b) and not any(map(is_not, a.values(), b.values())) and [*a] == [*b]
