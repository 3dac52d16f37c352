"""The state of NumPy's global generator, lent for the time of a pass.

Reading or writing it takes 30 µs, a good part of a small network's forward pass; most passes draw
nothing from it. So the generator's own memory is compared first, which takes one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

WORDS = 625  # of a Mersenne Twister: 624 of its state, and the position among them


class NumpyState:
    """The state as it is now."""

    def __init__(self) -> None:
        self._state = np.random.get_state(legacy=False)
        # A normal number that was drawn ahead can be taken without a change in that memory.
        self._seen = None if self._state.get("has_gauss") else _memory()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, the generator has this state; afterwards, the one that it had before."""
        if self._seen is not None and self._seen == _memory():
            try:
                yield
            finally:
                if self._seen != _memory():
                    np.random.set_state(self._state)
            return
        before = np.random.get_state(legacy=False)
        try:
            np.random.set_state(self._state)
            yield
        finally:
            np.random.set_state(before)


def _memory() -> bytes | None:
    """What the generator stands on; None for one of another kind."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if not isinstance(generator, np.random.MT19937):
        return None
    return ctypes.string_at(generator.ctypes.state_address, 4 * WORDS)
