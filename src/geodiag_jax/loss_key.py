"""The key of a loss callable: which of its compiled functions may be reused.

Compiled functions outlive a measurement, and arrays that a loss closes over are constants in them.
So the key holds, besides the callable, the arrays and the numbers that it reads from its closure,
its module's globals or its object: another value recompiles instead of measuring the old one.
Small lists and NumPy arrays among these count by what they hold, and so do functions that it calls,
methods and ``__call__`` of objects among them. What is further away (behind attributes of
attributes, in large containers) cannot be seen, as with ``jax.jit``: a loss must be a pure
function. Pass what changes through ``data=``.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from geodiag.errors import ParameterError
from geodiag_jax.loss_contents import PLAIN, REDEFINED, Contents, is_known, told_apart
from geodiag_jax.loss_reads import Reads, reads_of
from geodiag_jax.pytree import is_array, leaves_of


class LossKey:
    """A loss callable, compared by its identity, that of the arrays and the numbers it reads.

    One that was redefined is known again where its contents can be compared, see
    :mod:`geodiag_jax.loss_contents`.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call
        self._contents = contents = Contents(call)
        # Each access to a bound method makes a new object.
        identity = (call.__self__, call.__func__) if isinstance(call, types.MethodType) else (call,)
        parts, values = (contents.parts, contents.values) if contents.whole else (identity, ())
        functions = functions_of(call)
        self._parts = (*parts, *captured(functions))
        self._numbers = (*numbers(functions), *values)
        self._hash = hash((tuple(map(id, self._parts)), self._numbers))

    def note(self) -> str:
        """A note where a loss that differs in its arrays or objects alone was seen; once."""
        return REDEFINED if told_apart(self._contents, self) else ""

    def now(self) -> LossKey:
        """The key with what the loss would read now; the same one where that is the same."""
        key = LossKey(self.call)
        return self if key == self else key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LossKey) or len(self._parts) != len(other._parts):
            return False
        if self._numbers != other._numbers:
            return False
        return all(a is b for a, b in zip(self._parts, other._parts, strict=True))

    def __hash__(self) -> int:
        return self._hash


DEEPEST = 3  # functions that call each other
MOST = 256  # entries of a list, a dict or an array
_VALUES = (*PLAIN, list, tuple, dict, set, np.ndarray, jax.Array, type)


class Function(NamedTuple):
    """A function that a loss consists of, and the object whose method it is."""

    code: Any
    owner: Any = None

    def reads(self) -> Iterator[tuple[str, Any, Reads]]:
        """What it reads apart from its arguments: name, value and what it does with it."""
        f, reads = self.code, reads_of(self.code.__code__)
        if self.owner is not None:
            yield "self", self.owner, reads
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            with suppress(ValueError):  # not bound yet
                yield name, cell.cell_contents, reads
        held = f.__globals__
        yield from ((n, held[n], reads) for n in sorted(reads.global_names) if n in held)


def functions_of(call: Any) -> list[Function]:
    """Those that a loss consists of: its own, and those that it calls, each once."""
    found: dict[tuple[int, int], Function] = {}
    level = list(_functions_in(call))
    for _ in range(DEEPEST + 1):
        new = {(id(f.code), id(f.owner)): f for f in level}
        new = {key: f for key, f in new.items() if key not in found}
        found |= new
        level = [g for f in new.values() for _, x, reads in f.reads() for g in _called(x, reads)]
    return list(found.values())


def _functions_in(call: Any, depth: int = DEEPEST) -> Iterator[Function]:
    """The functions in Python behind a callable."""
    if isinstance(call, _VALUES) or is_known(call):
        return
    if isinstance(call, functools.partial):
        for x in (call.func, *call.args, *call.keywords.values()):
            yield from _functions_in(x)
        return
    if depth and callable(inner := getattr(call, "__wrapped__", None)):
        yield from _functions_in(inner, depth - 1)
    if isinstance(call, types.FunctionType):
        yield Function(call)
    elif isinstance(call, types.MethodType):
        yield from _methods(call.__func__, call.__self__)
    elif isinstance(
        own := inspect.getattr_static(type(call), "__call__", None), types.FunctionType
    ):
        yield from _methods(own, call)


def _methods(x: Any, owner: Any) -> Iterator[Function]:
    x = x.fget if isinstance(x, property) else x
    for f in _functions_in(getattr(x, "__func__", x)):
        yield f._replace(owner=owner)


def _called(x: Any, reads: Reads) -> Iterator[Function]:
    """The functions behind a value, and behind the attributes of it that are read."""
    if not (isinstance(x, _VALUES) or is_known(x)):
        yield from _functions_in(x)
    for name, value in _attributes(x, reads):
        if name in getattr(x, "__dict__", {}) or isinstance(x, type):
            yield from _functions_in(value)
        else:  # of each class, since one may call super()
            for c in type(x).__mro__:
                yield from _methods(vars(c).get(name), x)


def _attributes(x: Any, reads: Reads) -> Iterator[tuple[str, Any]]:
    """Those that are read of an object, a class or a module of one's own."""
    if isinstance(x, (*_VALUES[:-1], types.FunctionType, functools.partial)) or is_known(x):
        return
    for name in reads.attributes:
        value = inspect.getattr_static(x, name, None)
        if isinstance(value, types.MemberDescriptorType):  # a slot
            value = getattr(x, name, None)
        if value is not None:
            yield name, value


def captured(functions: list[Function]) -> Iterator[Any]:
    """The arrays that functions read apart from their arguments, and what they call."""
    for f in functions:
        yield f.code.__code__
        for _, x, reads in f.reads():
            yield from _arrays(x)
            if callable(x) and is_known(x):
                yield x
            for _, value in _attributes(x, reads):
                yield from _arrays(value)
            if x is f.owner:
                yield from _arrays(dict(getattr(x, "__dict__", {})))


def _arrays(value: Any) -> Iterator[Any]:
    if is_array(value):
        yield value
    elif type(value) in (tuple, list, dict):
        with suppress(ParameterError):  # one that contains itself: no loss computes with it
            yield from filter(is_array, leaves_of(value))


def numbers(functions: list[Function]) -> Iterator[tuple[str, str, str]]:
    """The numbers that functions read apart from their arguments.

    Yields:
        Name, type and value.
    """
    for f in functions:
        for name, value, reads in f.reads():
            if name not in reads.written:
                yield from _number(name, value)
                yield from _numbers_in(value, name, reads)


def _numbers_in(value: Any, name: str, reads: Reads) -> Iterator[tuple[str, str, str]]:
    """Those in a container, or in the attributes of an object or a module that are read."""
    if isinstance(value, dict):
        keys = reads.keys.get(name, value.keys())
        for key, x in value.items():
            if key in keys and reads.counts(name, key):
                yield from _number(f"{name}[{key!r}]", x)
                yield from _entries(f"{name}[{key!r}]", x)
    elif isinstance(value, (list, tuple, np.ndarray)):
        yield from _entries(name, value, reads=reads)
    else:
        for key, x in _attributes(value, reads):
            yield from _number(f"{name}.{key}", x)
            yield from _entries(f".{key}", x, reads=reads)


def _entries(
    name: str, x: Any, depth: int = 3, reads: Reads | None = None
) -> Iterator[tuple[str, str, str]]:
    """The numbers in small containers and arrays, but for entries that are changed."""
    if isinstance(x, np.ndarray) and x.size <= MOST and x.dtype != object:
        if reads is None or reads.counts(name):
            yield name, str(x.dtype), str(hash(x.tobytes()))
    elif isinstance(x, (list, tuple, dict)) and depth and len(x) <= MOST:
        for key, value in x.items() if isinstance(x, dict) else enumerate(x):
            if reads is None or reads.counts(name, key):
                yield from _number(f"{name}[{key!r}]", value)
                yield from _entries(f"{name}[{key!r}]", value, depth - 1)


def _number(name: str, x: Any) -> Iterator[tuple[str, str, str]]:
    if type(x) in (bool, int, float, complex, str):
        yield name, type(x).__name__, repr(x)
