"""Other threads of Python while a model is lent: they find its own tensors.

Passes of several threads take turns. While one runs, the module's dicts of tensors are replaced by
those that answer each thread with what is for it.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from geodiag.core.threads import others
from geodiag.errors import DataError

_passes = threading.RLock()


def turn() -> Any:
    """What a thread holds while its pass runs."""
    return _passes


class SharedDraws:
    """What is known of the passes of an oracle, where other threads may draw random numbers too.

    Attributes:
        drawn: by the names of generators, whether passes draw from them, as far as is known.
        probing: whether a pass is made to find that out.
        foreign: whether another thread drew from one that passes draw from.
    """

    def __init__(self) -> None:
        self.drawn: dict[str, bool] = {}
        self.probing = self.foreign = False

    def leaves(self, name: str, unknown: bool = True) -> bool:
        """Whether a generator is left to other threads."""
        alone = self.drawn.get(name) is False or (unknown and self.probing)
        return alone and bool(others())

    def refuse_foreign(self) -> None:
        """Raise a DataError where another thread drew from a generator that passes draw from."""
        if self.foreign:
            raise DataError(
                "another thread drew random numbers while a measurement did, from the same "
                "generator, which was reseeded",
                do="give one of the two a generator of its own, or measure model.eval()",
            )


class ForEach(dict[str, Any]):
    """A dict that is ``own`` to the threads ``others``, and ``lent`` to the rest.

    Its own memory, which code in C reads, holds what is lent.
    """

    def __init__(self, own: dict[str, Any], lent: dict[str, Any], others: frozenset[int]) -> None:
        super().__init__(lent)
        self.own, self.lent, self.others = own, lent, others

    def now(self) -> dict[str, Any]:
        """The dict of the thread that asks."""
        return self.own if threading.get_ident() in self.others else self.lent

    def __reduce__(self) -> Any:
        return dict, (dict(self.now()),)


def _delegating(name: str) -> Any:
    method = getattr(dict, name)

    def delegated(self: ForEach, *args: Any, **keywords: Any) -> Any:
        return method(self.now(), *args, **keywords)

    return delegated


METHODS = ["__contains__", "__delitem__", "__eq__", "__getitem__", "__iter__", "__len__", "__ne__",
           "__or__", "__repr__", "__reversed__", "__setitem__", "clear", "copy", "get", "items",
           "keys", "pop", "popitem", "setdefault", "update", "values"]  # fmt: skip
for _name in METHODS:
    setattr(ForEach, _name, _delegating(_name))


def _released() -> None:
    """In a forked child no other thread holds the lock."""
    global _passes
    _passes = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_released)
