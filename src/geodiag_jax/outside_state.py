"""State in Python that a loss changes where it runs, beside training.

A loss keeps no arrays of a trace. What else it keeps is not restored: JAX losses are to be pure,
and what a trace changes is noted.
"""

from __future__ import annotations

import inspect
import types
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np

from geodiag_jax.loss_contents import PLAIN, is_frozen, is_known, names_in
from geodiag_jax.rng import GENERATORS, comparable, generator_state

MOST = 4096  # entries of a container, or of an array, that are looked at
DEEPEST = 4  # functions that call each other
CODE = (type, types.FunctionType, types.ModuleType)
CONTAINERS = (list, dict, deque)


@contextmanager
def no_tracers_left(call: Any) -> Iterator[None]:
    """Inside a loss runs in a trace: arrays of it that the loss keeps make way for what was there.

    As where it splits a key that an object holds. Such arrays would fail wherever they are used.
    """
    variables = [(get, put, get()) for get, put in _assigned(call)]
    containers = _containers(call)
    try:
        yield
    finally:
        known = {id(x) for x, _ in containers}
        for x, before in containers:
            _revert(x, before, known)
        for get, put, value in variables:
            if (now := get()) is not value and _holds_tracers(now, known):
                put(value)


def state_of(call: Any) -> dict[str, Hashable]:
    """What stands for the state that a loss reaches, by the names that it has there."""
    return {name: _token(x, 1) for name, x, _ in _reached(call)}


def changed_by(before: dict[str, Hashable], after: dict[str, Hashable]) -> list[str]:
    """The names of what is another now."""
    return sorted(name for name in after if before.get(name) != after[name])


Put = Callable[[Any], Any] | None
Reached = Iterator[tuple[str, Any, Put]]


def _reached(call: Any, depth: int = DEEPEST, seen: dict[int, int] | None = None) -> Reached:
    """Variables that a function closes over or names, attributes of its own object.

    Yields:
        The name and the value of each and, of variables, what assigns to it.
    """
    seen = {} if seen is None else seen  # how deep from there each was followed
    if isinstance(call, partial):
        yield from _reached(call.func, depth, seen)
        arguments = (("argument", x, None) for x in (*call.args, *call.keywords.values()))
        yield from _further(arguments, depth, seen)
    elif isinstance(call, types.MethodType):
        yield from _of_object("self", call.__self__)
        yield from _reached(call.__func__, depth, seen)
    elif seen.get(id(call), -1) >= depth:
        return
    elif isinstance(call, types.FunctionType):
        seen[id(call)] = depth
        yield from _further(_variables(call), depth, seen)
    elif isinstance(inner := getattr(call, "__wrapped__", None), types.FunctionType):
        yield from _reached(inner, depth, seen)
    elif not (is_frozen(call) or is_known(call)):
        seen[id(call)] = depth
        yield from _further(_of_object(type(call).__name__, call), depth, seen)
        own = inspect.getattr_static(type(call), "__call__", None)
        if isinstance(own, types.FunctionType):
            yield from _reached(own, depth, seen)


def _further(found: Reached, depth: int, seen: dict[int, int]) -> Reached:
    """The same, and what the functions among them reach."""
    for name, x, put in found:
        yield name, x, put
        calls = isinstance(x, types.FunctionType) and not is_known(x)
        calls |= not isinstance(x, CODE) and isinstance(
            inspect.getattr_static(type(x), "__call__", None), types.FunctionType
        )
        if depth and calls:
            yield from _reached(x, depth - 1, seen)


def _variables(f: types.FunctionType) -> Reached:
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        if cell != types.CellType():  # not bound yet
            yield name, cell.cell_contents, partial(setattr, cell, "cell_contents")
    for name in names_in(f.__code__):
        if name in f.__globals__:
            yield name, f.__globals__[name], partial(f.__globals__.__setitem__, name)


def _of_object(name: str, x: Any) -> Reached:
    yield name, x, None
    if not isinstance(x, type):
        own = getattr(x, "__dict__", {})
        yield from ((f"{name}.{key}", value, None) for key, value in list(own.items()))


def _assigned(call: Any) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """What reads and puts back variables that a loss may assign to."""
    for _, _, put in list(_reached(call)):
        if isinstance(put, partial) and put.func is setattr:
            yield partial(getattr, *put.args), put
        elif isinstance(put, partial):
            yield partial(put.func.__self__.get, *put.args), put  # type: ignore[attr-defined]


def _containers(call: Any) -> list[tuple[Any, Any]]:
    """Containers and attributes that a loss reaches, and containers in these; each with a copy."""
    found: dict[int, tuple[Any, Any]] = {}
    level = [x for _, x, _ in _reached(call)]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for x in level:
            if not isinstance(x, (*CONTAINERS, tuple, *CODE)):
                x = getattr(x, "__dict__", None)
            if isinstance(x, CONTAINERS) and id(x) not in found and len(x) <= MOST:
                found[id(x)] = x, dict(x) if isinstance(x, dict) else list(x)
            elif not isinstance(x, tuple) or len(x) > MOST:
                continue
            entries = x.values() if isinstance(x, dict) else x
            inner += [y for y in entries if isinstance(y, (*CONTAINERS, tuple))]
        level = inner
    return [*found.values()]


def _revert(x: Any, before: Any, known: set[int]) -> None:
    """Put back what was where arrays of a trace are: in a list, all that it held."""
    if isinstance(x, dict):
        for key, value in list(x.items()):
            if value is before.get(key) or not _holds_tracers(value, known):
                continue
            if key in before:
                x[key] = before[key]
            else:
                del x[key]
    elif any(_holds_tracers(y, known) for y in x):
        x.clear()
        x.extend(before)


def _holds_tracers(x: Any, known: Collection[int], depth: int = DEEPEST) -> bool:
    """Whether it is an array of a trace, or holds one outside of ``known`` containers."""
    if isinstance(x, dict):
        entries = list(x.values())
    elif isinstance(x, (*CONTAINERS, tuple)):
        entries = list(x)
    else:
        return isinstance(x, jax.core.Tracer)
    if id(x) in known or not depth:
        return False
    return any(_holds_tracers(y, known, depth - 1) for y in entries[:MOST])


def _token(x: Any, depth: int) -> Hashable:
    if isinstance(x, PLAIN):
        return type(x), repr(x)
    if isinstance(x, GENERATORS):
        return id(x), hash(comparable(generator_state(x)))
    if isinstance(x, np.ndarray):
        return id(x), hash(x.tobytes()) if x.size <= MOST else None
    if isinstance(x, (list, set, deque, bytearray, dict)):
        entries = [*x.items()] if isinstance(x, dict) else [*x]
        return id(x), len(x), tuple(map(_entry, entries[:MOST])) if depth else None
    if isinstance(x, CODE) or is_known(x) or is_frozen(x):
        return id(x)
    own = getattr(x, "__dict__", None)
    if depth and isinstance(own, dict):
        return id(x), tuple((name, _token(value, 0)) for name, value in own.items())
    return id(x)


def _entry(x: Any) -> Hashable:
    if isinstance(x, tuple) and len(x) == 2:  # of a dict
        return _token(x[0], 0), _token(x[1], 0)
    return _token(x, 0)
