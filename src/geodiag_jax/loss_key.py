"""The key of a loss callable: which of its compiled functions may be reused.

Compiled functions outlive a measurement, and arrays that a loss closes over are constants in them.
So the key holds, besides the callable, the arrays that it reads from its closure, its module's
globals or its object: rebinding one of them recompiles instead of measuring the old data.
Arrays further away (inside another function, written to in place) cannot be seen, as with
``jax.jit``; pass those through ``data=``.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from geodiag.errors import ParameterError
from geodiag_jax.pytree import is_array, leaves_of


class LossKey:
    """A loss callable, compared by its identity and that of the arrays that it captures."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call
        # Each access to a bound method makes a new object.
        identity = (call.__self__, call.__func__) if isinstance(call, types.MethodType) else (call,)
        self._parts = (*identity, *captured(call))
        self._hash = hash(tuple(map(id, self._parts)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LossKey) or len(self._parts) != len(other._parts):
            return False
        return all(a is b for a, b in zip(self._parts, other._parts, strict=True))

    def __hash__(self) -> int:
        return self._hash


def captured(call: Any) -> list[Any]:
    """The arrays that a function, bound method or partial reads apart from its arguments."""
    if isinstance(call, functools.partial):
        return captured(call.func)
    if isinstance(call, types.MethodType):
        mine = list(_arrays(list(getattr(call.__self__, "__dict__", {}).values())))
        return mine + captured(call.__func__)
    if not isinstance(call, types.FunctionType):
        return []
    seen: list[Any] = []
    for cell in call.__closure__ or ():
        try:
            seen.append(cell.cell_contents)
        except ValueError:  # not bound yet
            continue
    seen += [call.__globals__.get(name) for name in _names(call.__code__)]
    return list(_arrays(seen))


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names that a function, or one written inside it, reads."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _arrays(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if is_array(value):
            yield value
        elif type(value) in (tuple, list, dict):
            with suppress(ParameterError):  # one that contains itself: no loss computes with it
                yield from filter(is_array, leaves_of(value))
