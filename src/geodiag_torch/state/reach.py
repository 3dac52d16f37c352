"""What a loss reaches by its code: closures, its own object, variables of its module.

No graph of objects is followed to its end: by default a value in a variable or an attribute, with
its attributes or entries, and the containers among those.
"""

from __future__ import annotations

import functools
import random
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geodiag_torch.state.places import (
    Attributes,
    Cell,
    Place,
    attributes,
    container,
    generator,
    same,
    variables,
)

# What is taken from a container that is not looked into further.
DRAWN = (nn.Module, torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
MOST = 4096  # entries of a container whose entries are looked at, and places in all
SIMPLE = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type, property, np.generic,
    np.dtype, torch.dtype, torch.device, torch.Size, Tensor, ModuleType, BuiltinFunctionType,
    CodeType,
)  # fmt: skip
# Objects that threads share, or that are no state of a loss.
LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Thread, threading.Event,
         threading.Condition, threading.Semaphore)  # fmt: skip
LEFT = (Optimizer, torch.utils.data.DataLoader, threading.local)
MANAGED = "torch.distributed"  # what shards parameters is set up in the first pass, for good
LIBRARIES = {"torch", "numpy", "jax", "geodiag", "geodiag_torch", "geodiag_jax", "builtins"}
PLAIN = frozenset(vars(nn.Module()))  # what every module has
NUMBERS = frozenset((type(None), bool, int, float, str))  # what most containers hold, or text


class Reach:
    """The places and modules that are reached from roots.

    Args:
        depth: how many objects or containers to go through, one in the other.

    Attributes:
        places: what holds state, each once.
        modules: those that are reached, the outermost of each.
        unkept: what has a state that cannot be given back, in words, and what tells its state.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self.places: dict[int, Place] = {}
        self.modules: dict[int, nn.Module] = {}
        self.unkept: dict[int, tuple[str, Callable[[], Any]]] = {}
        # What is looked through beside the places, as it was then.
        self._entered: dict[int, tuple[Mapping[str, Any], dict[str, Any]]] = {}
        self._empty: dict[int, Mapping[str, Any]] = {}
        self._missing: dict[int, tuple[dict[str, Any], set[str]]] = {}  # names of no variable yet
        self._functions: dict[int, tuple[FunctionType, Any, Any, Any]] = {}
        self._kinds: dict[int, tuple[Any, type]] = {}
        self._seen: dict[int, Any] = {}  # held, so that none of their ids is used again
        self._best: dict[int, int] = {}

    def is_current(self) -> bool:
        """Whether another search would find the same, where the places hold what they did."""
        return (
            all(type(x) is kind for x, kind in self._kinds.values())
            and not any(self._empty.values())
            and all(same(now, before) for now, before in self._entered.values())
            and all(now.keys().isdisjoint(names) for now, names in self._missing.values())
            and all(
                f.__code__ is code and f.__defaults__ is given and f.__kwdefaults__ is named
                for f, code, given, named in self._functions.values()
            )
        )

    def visit(self, x: Any, name: str = "", depth: int | None = None) -> None:
        """Take ``x``, called ``name``, and what it reaches."""
        depth = self._depth if depth is None else depth
        if isinstance(x, SIMPLE) or len(self.places) > MOST or self._best.get(id(x), -1) >= depth:
            return
        self._seen[id(x)], self._best[id(x)] = x, depth
        if isinstance(x, nn.Module):
            self.modules.setdefault(id(x), x)
        elif isinstance(x, (FunctionType, MethodType, functools.partial, staticmethod)):
            self._function(x, name, depth)
        elif isinstance(x, functools._lru_cache_wrapper):
            self.unkept[id(x)] = f"the cache of {x.__name__}", lambda: x.cache_info().currsize
            self.visit(x.__wrapped__, name, depth)
        elif (drawn := generator(x)) is not None:
            self.places.setdefault(id(x), drawn)
        elif isinstance(x, Iterator):
            self.unkept[id(x)] = f"the iterator {name or type(x).__name__}", lambda: position(x)
        elif isinstance(x, (tuple, frozenset)):
            self._entries(x, name, depth)
        elif (place := container(x)) is not None:
            if not hasattr(x, "__len__") or len(x) <= MOST:
                self.places.setdefault(id(x), place)
            if not isinstance(x, (np.ndarray, bytearray, set)):
                self._entries(x.values() if isinstance(x, dict) else x, name, depth - 1)
        elif depth > 0:
            self._object(x, name, depth - 1)

    def module(self, m: nn.Module) -> None:
        """Take the attributes of one module, its hooks, and its own forward()."""
        own = vars(m)
        self._seen[id(m)] = m
        self.places.setdefault(id(own), Attributes(own))
        self._enter(m._modules)
        for key, x in own.items():
            if key not in PLAIN and not isinstance(x, nn.Module):
                self.visit(x, key)
            elif key.endswith("_hooks"):
                self._enter(x)
                for hook in x.values():
                    self.visit(hook, getattr(hook, "__name__", key))
        self._class(m)

    def _entries(self, x: Any, name: str, depth: int) -> None:
        if len(x) > MOST:
            self.unkept[id(x)] = f"{name}, of {len(x)} entries", lambda: len(x)
            return
        for entry in list(x):
            if depth >= 0 or isinstance(entry, DRAWN):
                self.visit(entry, name, max(depth, 0))

    def _object(self, x: Any, name: str, depth: int) -> None:
        own = getattr(x, "__dict__", None)
        if isinstance(x, (*LEFT, *LOCKS)) or _root(type(x)) in ("geodiag", "geodiag_torch"):
            return
        if type(x).__module__.startswith(MANAGED):
            return
        held = dict(own) if isinstance(own, dict) else {}
        slots = [s for c in type(x).__mro__ for s in _slots(c)]
        if any(isinstance(value, LOCKS) for value in held.values()):
            return
        if isinstance(own, dict):
            self.places.setdefault(id(own), Attributes(own))
        if slots and _root(type(x)) not in LIBRARIES:
            self.places.setdefault(id(x), attributes(x, slots))
            held |= {s: getattr(x, s) for s in slots if hasattr(x, s)}
        for key, value in held.items():
            self.visit(value, f"{name}.{key}" if name else key, depth)
        self._class(x)

    def _function(self, f: Any, name: str, depth: int) -> None:
        """A function, with what it closes over, its defaults, and the variables that it names."""
        if isinstance(f, functools.partial):
            for x in (f.func, *f.args, *f.keywords.values()):
                self.visit(x, name, depth)
            return
        if isinstance(f, MethodType):
            self.visit(f.__self__, name, max(depth, 1))
        if not isinstance(f, FunctionType):
            self.visit(f.__func__, name, depth)
            return
        for variable, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            self.places.setdefault(id(cell), Cell(cell))
            self._seen[id(cell)] = cell
            for x in self.places[id(cell)].read():
                self.visit(x, variable, depth)
        for x in (*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()):
            self.visit(x, name, depth)
        self._enter(f.__dict__)
        if f.__dict__:
            self.places.setdefault(id(f.__dict__), Attributes(f.__dict__))
            for key, x in list(f.__dict__.items()):
                self.visit(x, key, depth)
        self._variables(f, depth)

    def _variables(self, f: FunctionType, depth: int) -> None:
        """The variables of its module that a function names; functions among them of the same."""
        if _root(f) in LIBRARIES:
            return
        self._functions[id(f)] = f, f.__code__, f.__defaults__, f.__kwdefaults__
        every = [*_names(f.__code__)]
        names = [n for n in every if n in f.__globals__]
        missing = self._missing.setdefault(id(f.__globals__), (f.__globals__, set()))[1]
        missing.update(n for n in every if n not in f.__globals__)
        if not names:
            return
        key = id(f.__globals__), f.__code__
        self.places.setdefault(hash(key), variables(f.__globals__, names))
        for n in names:
            x = f.__globals__[n]
            if not isinstance(x, FunctionType) or x.__globals__ is f.__globals__:
                self.visit(x, n, depth)

    def _class(self, x: Any) -> None:
        """The attributes of its class that are no functions, and what the functions name."""
        kind = type(x)
        self._kinds[id(x)] = x, kind
        if id(kind) in self._seen or _root(kind) in LIBRARIES:
            return
        self._seen[id(kind)] = kind
        for base in kind.__mro__:
            if _root(base) in LIBRARIES or len(self.places) > MOST:
                continue
            self._enter(vars(base), id(base))
            own = {n: x for n, x in vars(base).items() if not n.startswith("__")}
            values = {n: x for n, x in own.items() if _is_value(x)}
            if values:
                self.places.setdefault(id(base), attributes(base, values))
                for n, x in values.items():
                    self.visit(x, n)
            for x in own.values():
                if isinstance(x, FunctionType):
                    self._variables(x, self._depth)

    def _enter(self, namespace: Mapping[str, Any], key: int | None = None) -> None:
        if namespace:
            self._entered[key or id(namespace)] = namespace, dict(namespace)
        else:
            self._empty[id(namespace)] = namespace


def _names(code: CodeType) -> Iterable[str]:
    found = dict.fromkeys(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found |= dict.fromkeys(_names(inner))
    return found


def _root(x: Any) -> str:
    return (getattr(x, "__module__", None) or "builtins").partition(".")[0]


def _slots(kind: type) -> Iterable[str]:
    found = vars(kind).get("__slots__", ())
    return (found,) if isinstance(found, str) else found


def _is_value(x: Any) -> bool:
    return not callable(x) and not hasattr(type(x), "__get__")


def carries_graph(x: Any, depth: int = 3) -> bool:
    """Whether a tensor in it, or in what it holds, keeps the graph that it was computed by."""
    if isinstance(x, Tensor):
        return x.grad_fn is not None
    if depth == 0 or isinstance(x, (nn.Module, type, ModuleType)):
        return False
    if not isinstance(x, (list, tuple, set, frozenset, deque)):
        held = x if isinstance(x, dict) else getattr(x, "__dict__", {})
        x = [y for n, y in held.items() if n not in PLAIN]
    return not NUMBERS.issuperset(map(type, x)) and any(carries_graph(y, depth - 1) for y in [*x])


def position(x: Any, depth: int = 3) -> Any:
    """How far an iterator has come, as far as it can be told."""
    if isinstance(x, GeneratorType):
        frame = x.gi_frame
        if frame is None:
            return None
        here = {n: position(y, 0) for n, y in frame.f_locals.items()}
        return frame.f_lasti, here
    if not isinstance(x, Iterator) or depth == 0:
        return x if isinstance(x, (int, float, str)) else id(x)
    if hasattr(x, "__dict__"):
        return [position(y, depth - 1) for y in vars(x).values()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from Python 3.12 on
            reduced = x.__reduce__()
    except TypeError:
        return repr(x)
    parts = [*reduced[1], reduced[2] if len(reduced) > 2 else None]
    return repr(x), [position(y, depth - 1) for y in parts]


def named(found: Iterable[str]) -> str:
    """A few of them, in words."""
    few = list(dict.fromkeys(found))
    return ", ".join(few[:4]) + (f" and {len(few) - 4} more" if len(few) > 4 else "")


def generators_of(data: Any) -> list[Any]:
    """The generators of NumPy and Python that a loader, its dataset and its samplers hold."""
    holders = [data, *(getattr(data, n, None) for n in ("dataset", "sampler", "batch_sampler"))]
    held = (x for h in holders for x in getattr(h, "__dict__", {}).values())
    return [x for x in held if isinstance(x, DRAWN) and not isinstance(x, nn.Module)]
