"""Objects of every kind that Python can hold, nearly right ones and hostile ones."""

from __future__ import annotations

import datetime
import decimal
import fractions
import functools
import pathlib
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import geodiag


class Own(Exception):
    """What a user's callable raises; it goes through as it is."""


def guard(function: Callable[..., Any]) -> Callable[..., Any]:
    """A user's function that raises nothing but :class:`Own`."""

    @functools.wraps(function)
    def guarded(*args: Any, **keywords: Any) -> Any:
        try:
            return function(*args, **keywords)
        except Exception as e:
            raise Own(str(e)) from e

    return guarded


def raises(*args: Any, **keywords: Any) -> Any:
    raise Own("the user's own")


class Brittle:
    """An object that raises at whatever it is asked, but for its name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Own(name)

    def __len__(self) -> int:
        raise Own("len")

    def __bool__(self) -> bool:
        raise Own("bool")

    def __float__(self) -> float:
        raise Own("float")

    def __iter__(self) -> Any:
        raise Own("iter")

    def __eq__(self, other: object) -> bool:
        raise Own("eq")

    __hash__ = None  # type: ignore[assignment]


class Plain:
    """A class of the user's."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        if args or keywords:
            raise Own("no arguments")


class Module(torch.nn.Linear):
    """A module of the user's."""

    forward = guard(torch.nn.Linear.forward)

    def __init__(self) -> None:
        super().__init__(2, 1)


class Odd:
    """An object with the attributes of an array or an operator, and nonsense in them."""

    shape = (3, 3)
    dtype = "float64"
    ndim = -1

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    def matvec(self, x: Any) -> Any:
        return self.answer


def recursive_list() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def recursive_dict() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["x"] = found
    return found


def deep(kind: type, depth: int = 5000) -> Any:
    """A list or tuple in a list or tuple, so many times."""
    found: Any = 1.0
    for _ in range(depth):
        found = kind([found])
    return found


NAN, INF = float("nan"), float("inf")
NUMBERS = (
    0, 1, -1, 2, 3, 7, 10**30, -(10**30), 10**400, True, False, 0.0, -0.0, 0.5, 1.0, -2.5, NAN,
    INF, -INF, 1e-320, 1e-160, 1e160, 1.7e308, 1j, complex(NAN, 1), decimal.Decimal("0.5"),
    decimal.Decimal("NaN"), decimal.Decimal("sNaN"), fractions.Fraction(1, 3), np.float64(0.5),
    np.float64(NAN), np.float32(INF), np.float16(1), np.int64(3), np.uint8(2), np.int8(-3),
    np.bool_(True), np.complex64(1j), np.longdouble(1),
)  # fmt: skip
TEXTS = (
    "", "x", "W", "l2", "linf", "spectral", "block", "auto", "mean", "sum", "w", "a.b", "ü∞",
    "\n", "\x00", "\ud800", "(", "*", "(?P<", "[", "\\", ".*", "x" * 5000, "nan", "1", "ascent",
    "lanczos", "preconditioned", "no/such/file.jsonl", "{}", "%s", np.str_("l2"),
)  # fmt: skip
NAMES = (
    "x", "W", "b", "", "a.b", "a..b", "layer.0.weight", "ü∞", "\n", "\x00", "(", "∇", " ",
    "x" * 300,
)  # fmt: skip
OBJECTS = (
    None, ..., NotImplemented, Plain, object(), Exception("e"), geodiag.norms.L2, geodiag.Norm,
    geodiag.estimators.Ascent, geodiag.norms.L2(), geodiag.norms.Spectral(),
    geodiag.estimators.Lanczos(), guard(print), guard(len), np, Plain(), torch.float32,
    np.float32, range(3), slice(2), b"", b"\xff", bytearray(2), memoryview(b"ab"),
    pathlib.Path("nowhere"), datetime.datetime(2020, 1, 1), frozenset({1}),
    types.SimpleNamespace(a=1), types.MappingProxyType({"x": 1}), np.datetime64("2020"),
    np.dtype("float64"), np.random.default_rng(0), (), [], {}, set(), (1,), [1, 2], {"x": 1},
    {1: 2}, {None: None}, {"x": [1.0]}, [[1.0], [2.0, 3.0]], [None], ("a", 1), [np.eye(2)],
    {"x": np.ones(3)}, {"x": np.ones(2), "y": None}, {("a",): np.ones(1)}, {1: np.ones(3)},
)  # fmt: skip
FRESH = (
    recursive_list, recursive_dict, functools.partial(deep, list), functools.partial(deep, tuple),
    Brittle, Odd, functools.partial(iter, [1, 2]), functools.partial(map, str, [1]),
    lambda: (i for i in range(3)), lambda: (np.eye(2) for _ in range(2)),
    lambda: np.ma.masked_array(np.eye(3), np.eye(3)), Module,
    lambda: torch.nn.Parameter(torch.ones(2, 2)), lambda: torch.eye(3).to_sparse(),
    lambda: torch.empty(2, 2, device="meta"),
)  # fmt: skip
