"""What a loss consists of, where that can be seen: so that one redefined is known again.

A function that is written in a loop is another object in every turn. It computes the same where its
code is the same object, and all that it reads apart from its arguments cannot change or is compared
with it: JAX arrays, numbers and texts, functions for which this holds too, and what belongs
to JAX or to packages on top of it. A list, a NumPy array or an object of one's own may have changed
since.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import numpy as np

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
# Packages whose modules and functions do not change, by the first part of their names.
KNOWN = {"jax", "jaxlib", "numpy", "math", "functools", "operator", "builtins", "typing"} | {
    *("optax", "flax", "equinox", "haiku", "jaxtyping", "einops")
}
DEEPEST = 8
REDEFINED = (
    "what the loss reads has changed, or it was redefined: it is recompiled, each time; define it "
    "once, and pass what changes through data="
)
# Losses that were seen, by their form. The oldest are forgotten.
_seen: OrderedDict[Hashable, Hashable] = OrderedDict()
REMEMBERED = 256


class Contents:
    """What a function is made of.

    Attributes:
        parts: objects that decide what it computes, to be compared by identity.
        values: what is compared by value.
        form: what is alike in functions that differ in their arrays or objects alone.
        whole: whether these decide it alone, not the function's own identity.
    """

    def __init__(self, call: Any) -> None:
        self.parts: list[Any] = []
        self.values: list[Hashable] = []
        self.form: list[Hashable] = []
        self.whole = isinstance(call, (types.FunctionType, functools.partial))
        self._inside: list[Any] = []
        self._add(call)

    def _add(self, x: Any) -> None:
        if isinstance(x, PLAIN):
            self._value(type(x).__name__, repr(x))
        elif isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
            self._part(x, x.shape, x.dtype)
        elif isinstance(x, tuple):
            self._value(type(x), len(x))
            self._add_all(x)
        elif isinstance(x, functools.partial):
            self._value(functools.partial, tuple(x.keywords))
            self._add_all((x.func, *x.args, *x.keywords.values()))
        elif is_known(x):
            made = "<locals>" in getattr(
                x, "__qualname__", ""
            )  # around a function, by checkpoint()
            self._part(x, getattr(x, "__code__", x) if made else x)
        elif isinstance(x, np.dtype) or is_frozen(x):
            self._part(x, f"{type(x).__module__}.{type(x).__qualname__}")
        elif isinstance(x, types.FunctionType):
            self._add_function(x)
        elif isinstance(x, types.MethodType):
            self._part(x.__func__, x.__func__)
            self._add(x.__self__)
        elif isinstance(inner := getattr(x, "__wrapped__", None), types.FunctionType):
            # Jitted; or with derivatives of its own, which are not looked into.
            self._part(x, None if type(x).__name__ == "PjitFunction" else id(x))
            self._add(inner)
        else:
            contents = isinstance(x, (list, dict, set, np.ndarray))
            itself = not self.parts and callable(x)  # an object that is the loss
            self._part(x, type(x).__qualname__ if contents or itself else id(x))
            self.whole = False

    def _add_function(self, f: types.FunctionType) -> None:
        if any(f is x for x in self._inside):  # it calls itself
            return
        if len(self._inside) >= DEEPEST:
            self.whole = False
            return
        self._inside.append(f)
        self._part(f.__code__, f.__code__)
        self._part(f.__globals__)
        try:
            self._add_all(x.cell_contents for x in f.__closure__ or ())
        except ValueError:  # not bound yet
            self.whole = False
        self._add_all((*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()))
        self._add_all(f.__globals__[n] for n in names_in(f.__code__) if n in f.__globals__)
        self._inside.pop()

    def _add_all(self, values: Any) -> None:
        for x in values:
            self._add(x)

    def _part(self, x: Any, *form: Hashable) -> None:
        self.parts.append(x)
        self.form += form

    def _value(self, *values: Hashable) -> None:
        self.values.append(values)
        self.form.append(values)


def told_apart(contents: Contents, key: Hashable) -> bool:
    """Whether a loss of the same form was seen, with another ``key``; said once for each form."""
    form = tuple(contents.form)
    try:
        before = _seen.setdefault(form, hash(key))
    except TypeError:
        return False
    _seen.move_to_end(form)
    while len(_seen) > REMEMBERED:
        _seen.popitem(last=False)
    if before in (None, hash(key)):
        return False
    _seen[form] = None
    return True


def is_known(x: Any) -> bool:
    """Whether it is a module, a class or a function of these packages."""
    if isinstance(x, types.ModuleType):
        name: Any = x.__name__
    elif isinstance(x, (type, types.FunctionType, types.BuiltinFunctionType, np.ufunc)):
        name = getattr(x, "__module__", "numpy")
    elif _root(type(x).__module__) in ("jax", "jaxlib"):
        name = getattr(x, "__module__", None)  # jitted, or with derivatives of its own
    else:
        return False
    return _root(name) in KNOWN


def is_frozen(x: Any) -> bool:
    """Whether it is an object that is not written to: an Equinox module, or one of flax.linen."""
    return any(c.__module__.startswith(("equinox", "flax.linen")) for c in type(x).__mro__)


def _root(name: Any) -> str:
    return name.partition(".")[0] if isinstance(name, str) else ""


def names_in(code: types.CodeType) -> Iterator[str]:
    """The global names that a function, or one written inside it, may read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)
