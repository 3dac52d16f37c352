"""The key of a loss callable: which of its compiled functions may be reused.

Compiled functions outlive a measurement, and arrays that a loss closes over are constants in them.
So the key holds, besides the callable, the arrays and the numbers that it reads from its closure,
its module's globals or its object: another value recompiles instead of measuring the old one.
Small lists and NumPy arrays among these count by what they hold, and so do the functions that it
calls. What is further away (behind attributes of objects, in large containers) cannot be seen, as
with ``jax.jit``: a loss must be a pure function. Pass what changes through ``data=``.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from geodiag.errors import ParameterError
from geodiag_jax.loss_contents import REDEFINED, Contents, is_known, names_in, told_apart
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
        self._parts = (*parts, *captured(call))
        self._numbers = (*numbers(call), *values)
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
    seen += [call.__globals__.get(name) for name in names_in(call.__code__)]
    return list(_arrays(seen))


def _arrays(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if is_array(value):
            yield value
        elif type(value) in (tuple, list, dict):
            with suppress(ParameterError):  # one that contains itself: no loss computes with it
                yield from filter(is_array, leaves_of(value))


DEEPEST = 3
MOST = 256  # entries of a list, a dict or an array
# Of a function that calls these: what it changes is taken for a record, which it does not read.
MUTATING = {"append", "extend", "insert", "pop", "update", "setdefault", "add", "clear", "fill"}
_LOADS = (
    *("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"),
    *("LOAD_FROM_DICT_OR_GLOBALS", "LOAD_FROM_DICT_OR_DEREF"),
)


class Reads(NamedTuple):
    """The names that a function reads and writes, those written inside it included."""

    global_names: frozenset[str]
    attributes: frozenset[str]
    written: frozenset[str]  # counters, say, which no loss depends on
    writes_items: bool
    keys: Mapping[str, frozenset[Any]]  # by names that are read as name["key"] alone


def numbers(call: Any, depth: int = DEEPEST) -> Iterator[tuple[str, str, str]]:
    """The numbers that a function, and those that it calls, read apart from their arguments.

    Yields:
        Name, type and value.
    """
    if isinstance(call, functools.partial):
        yield from numbers(call.func)
    elif isinstance(call, types.MethodType):
        if isinstance(call.__func__, types.FunctionType):
            yield from _numbers_in(call.__self__, "self", _reads(call.__func__.__code__))
        yield from numbers(call.__func__)
    elif isinstance(call, types.FunctionType):
        reads, seen = _reads(call.__code__), {}
        for name, cell in zip(call.__code__.co_freevars, call.__closure__ or (), strict=True):
            with suppress(ValueError):  # not bound yet
                seen[name] = cell.cell_contents
        seen |= {n: call.__globals__[n] for n in reads.global_names if n in call.__globals__}
        for name, value in seen.items():
            if name not in reads.written:
                yield from _number(name, value)
                yield from _numbers_in(value, name, reads)
            if depth and isinstance(value, types.FunctionType) and not is_known(value):
                yield from numbers(value, depth - 1)


def _numbers_in(value: Any, name: str, reads: Reads) -> Iterator[tuple[str, str, str]]:
    """Those in a dict, or in the attributes of an object or a module that the function reads."""
    if type(value) is dict:
        keys = () if reads.writes_items else reads.keys.get(name, value.keys())
        for key, x in value.items():
            if key in keys:
                yield from _number(f"{name}[{key!r}]", x)
                if not reads.attributes & MUTATING:
                    yield from _entries(f"{name}[{key!r}]", x)
    elif isinstance(value, (list, tuple, np.ndarray)):
        if not (reads.writes_items or reads.attributes & MUTATING):
            yield from _entries(name, value)
    elif not isinstance(value, (type, types.FunctionType)):
        held = getattr(value, "__dict__", {})
        for key in reads.attributes - reads.written:
            if key in held:
                yield from _number(f"{name}.{key}", held[key])


def _entries(name: str, x: Any, depth: int = 3) -> Iterator[tuple[str, str, str]]:
    """The numbers in small containers and arrays."""
    if isinstance(x, np.ndarray) and x.size <= MOST and x.dtype != object:
        yield name, str(x.dtype), str(hash(x.tobytes()))
    elif type(x) in (list, tuple, dict) and depth and len(x) <= MOST:
        for key, value in x.items() if isinstance(x, dict) else enumerate(x):
            yield from _number(f"{name}[{key!r}]", value)
            yield from _entries(f"{name}[{key!r}]", value, depth - 1)


def _number(name: str, x: Any) -> Iterator[tuple[str, str, str]]:
    if type(x) in (bool, int, float, complex, str):
        yield name, type(x).__name__, repr(x)


@functools.lru_cache(maxsize=1024)
def _reads(code: types.CodeType) -> Reads:
    global_names, attributes, written, items = set(), set(), set(), False
    keys: dict[str, set[Any]] = {}
    whole = set()  # names that are read otherwise than as name["key"]
    found = list(_instructions(code))
    for i, x in enumerate(found):
        if x.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            global_names.add(x.argval)
        elif x.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(x.argval)
        elif x.opname in ("STORE_DEREF", "STORE_GLOBAL", "STORE_ATTR"):
            written.add(x.argval)
        items = items or x.opname == "STORE_SUBSCR"
        if x.opname in _LOADS:
            if [each.opname for each in found[i + 1 : i + 3]] == ["LOAD_CONST", "BINARY_SUBSCR"]:
                keys.setdefault(x.argval, set()).add(found[i + 1].argval)
            else:
                whole.add(x.argval)
    return Reads(
        frozenset(global_names),
        frozenset(attributes),
        frozenset(written),
        items,
        {name: frozenset(some) for name, some in keys.items() if name not in whole},
    )


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)
