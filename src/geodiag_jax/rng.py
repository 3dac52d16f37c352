"""Random generators of NumPy and Python, which a loss or a loader draws from while measured."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from geodiag.core.threads import others

T = TypeVar("T")
GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
NOT_GIVEN_BACK = (
    "a generator of NumPy or Python moved while a measurement ran beside other threads of Python, "
    "which may draw from it too, so it is not given back"
)


class Draws:
    """The global generators of NumPy and Python, and those that a loader holds."""

    def __init__(self, data: Any = None) -> None:
        held = getattr(data, "__dict__", {}).values()
        found = [x for x in held if isinstance(x, GENERATORS)]
        self._held = [x for x in found if generator_state(x) is not None]
        self.left = False  # whether one moved and was not given back

    @contextmanager
    def kept(self) -> Iterator[bool]:
        """Inside, draws from them are of no consequence.

        Beside other threads of Python, which may draw too, the states are left as they are.

        Yields:
            Whether they are given back.
        """
        alone, before = not others(), self._read()
        try:
            yield alone
        finally:
            moved = comparable(self._read()) != comparable(before)
            if moved and alone:
                self._put(before)
            self.left |= moved and not alone

    def apart(self, items: Iterable[T]) -> Iterator[T]:
        """The items, whose draws are of no consequence to what is in between."""
        iterator, states = None, None
        while True:
            with self.kept() as kept:
                if states is not None and kept:
                    self._put(states)
                iterator = iter(items) if iterator is None else iterator
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                states = self._read()
            yield item

    def _read(self) -> tuple[Any, Any, list[Any]]:
        held = [generator_state(x) for x in self._held]
        return random.getstate(), np.random.get_state(legacy=False), held

    def _put(self, states: tuple[Any, Any, list[Any]]) -> None:
        python, numpy, held = states
        random.setstate(python)
        np.random.set_state(numpy)
        for x, state in zip(self._held, held, strict=True):
            if isinstance(x, np.random.Generator):
                x.bit_generator.state = state
            else:
                (x.setstate if isinstance(x, random.Random) else x.set_state)(state)


def generator_state(x: Any) -> Any:
    """The state of a generator; None where it has none, as ``random.SystemRandom``."""
    try:
        if isinstance(x, np.random.Generator):
            return x.bit_generator.state
        return x.getstate() if isinstance(x, random.Random) else x.get_state(legacy=False)
    except Exception:  # each class of one's own has another
        return None


def comparable(state: Any) -> Hashable:
    """A generator's state, to be compared."""
    if isinstance(state, np.ndarray):
        return state.tobytes()
    if isinstance(state, dict):
        return tuple((name, comparable(x)) for name, x in state.items())
    return tuple(map(comparable, state)) if isinstance(state, (tuple, list)) else state
