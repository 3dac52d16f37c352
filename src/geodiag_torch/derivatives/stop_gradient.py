"""Parts of a loss that are detached from the parameters: held constant, or differentiated.

``detach()``, ``no_grad()``, ``.data``, ``.item()`` and whatever leaves torch (NumPy, lists) make a
part of a loss a constant to autograd, although it changes with the parameters. So the gradient at
other parameters is that of another function, and differences of gradients are not the Hessian, nor
symmetric, unless the constants keep the values that they have at the point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from traceback import walk_tb
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DATA = Tensor.data.__get__  # type: ignore[attr-defined]
GRAD = Tensor.grad.__get__  # type: ignore[union-attr]
# What leaves torch for good, and what torch refuses or warns of where gradients are enabled.
LEAVING = (Tensor.numpy, Tensor.__float__, Tensor.__int__)
GRAD_MODE = torch._C._set_grad_enabled
BACKWARD = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
# What a function of torch that is written in Python names, if it detaches something on its way.
MARKS = frozenset({"detach", "no_grad", "data", "item"})
# By these a function asks whether a mode is to be called in its place.
ASKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
# Methods in place have names that end in "_" or begin with "__i"; these do not write.
READS = frozenset({"__invert__", "__index__", "__int__"})


class Diverged(Exception):
    """A pass did not compute the same things as the one that was recorded."""


class Constants(TorchFunctionMode):
    """Records the constants of one pass, and gives the same to the next ones.

    A constant is a number, or a tensor that carries no gradient, among the arguments and answers of
    a function of torch that is called while gradients are enabled. A function that writes into its
    first argument gets it as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tape: list[Any] = []
        self._replay: Iterator[Any] | None = None

    def rewind(self) -> None:
        """Before each pass: the first is recorded."""
        self._replay = iter(self._tape) if self._tape else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or func is GRAD_MODE or func == GRAD:
            return func(*args, **kwargs)
        if seen := _transparent(func):
            with self:
                return seen(*args, **kwargs)
        self._step(func)
        written = int(_writes(func))
        rest, named = _mapped(self._held, (args[written:], kwargs))
        answer = func(*args[:written], *rest, **named)
        return answer if written else _mapped(self._held, answer)

    def _step(self, func: Any) -> None:
        if self._replay is None:
            self._tape.append(func)
        elif (
            next(self._replay, Diverged) != func
        ):  # a property's getter is another object each time
            raise Diverged

    def _held(self, x: Any) -> Any:
        if self._replay is None:
            self._tape.append(x.detach().clone() if isinstance(x, Tensor) else x)
            return x
        held: Any = next(self._replay, Diverged)
        if not isinstance(x, Tensor):
            if type(held) is not type(x):
                raise Diverged
            return held
        # Of a frozen parameter a plain tensor was recorded.
        if not isinstance(held, Tensor) or held.shape != x.shape or held.dtype != x.dtype:
            raise Diverged
        return x if torch.equal(held, x) else held.clone()


def is_due_to(error: BaseException) -> bool:
    """Whether it was raised while :class:`Constants` called a function, or torch.compile traced.

    Or in the place of an error that was.
    """
    code = Constants.__torch_function__.__code__
    found: BaseException | None = error
    seen: set[int] = set()  # an error may be its own cause
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        for frame, _ in walk_tb(found.__traceback__):
            name = frame.f_globals.get("__name__", "")
            if frame.f_code is code or name.startswith("torch._dynamo"):
                return True
        found = found.__cause__ or found.__context__
    return False


class Attached(TorchFunctionMode):
    """Makes ``detach()``, ``.data`` and ``no_grad()`` do nothing, so that all is differentiated."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is GRAD_MODE:
            return None if args == (False,) else func(*args, **kwargs)
        if func in (Tensor.detach, DATA) and args[0].requires_grad:
            return args[0].view_as(args[0])
        if func in LEAVING:
            args = args[0].detach(), *args[1:]
        if seen := _transparent(func):
            with self:
                return seen(*args, **kwargs)
        return func(*args, **kwargs)


def _mapped(take: Callable[[Any], Any], x: Any) -> Any:
    """``x`` with its constants taken by ``take``; containers keep their types."""
    if isinstance(x, Tensor):
        return x if x.requires_grad else take(x)
    if isinstance(x, (bool, int, float)):
        return take(x)
    if isinstance(x, dict):
        return {k: v if k == "out" else _mapped(take, v) for k, v in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_mapped(take, v) for v in x))
    if isinstance(x, (tuple, list)):
        return type(x)([_mapped(take, v) for v in x])
    return x


@lru_cache(maxsize=4096)
def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    inplace = name.endswith("_") and not name.endswith("__")
    special = name.startswith("__i") and name not in READS
    return inplace or special or name in ("__setitem__", "__set__")


@lru_cache(maxsize=4096)
def _transparent(func: Any) -> Any:
    """A function of torch, written in Python, whose inner calls a mode sees; None for others.

    A mode is called in the place of the whole function, and would miss what it detaches inside.
    """
    if not isinstance(func, FunctionType):
        return None
    if func not in BACKWARD and not MARKS & {*func.__code__.co_names}:
        return None
    blind = {**func.__globals__, **dict.fromkeys(ASKS, lambda *_: False)}
    found = FunctionType(func.__code__, blind, func.__name__, func.__defaults__, func.__closure__)
    found.__kwdefaults__ = func.__kwdefaults__
    return found
