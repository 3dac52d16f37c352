"""Checks of arguments, of arrays that users hand over, and of what their functions return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Complex, Integral, Real
from typing import Any, TypeGuard

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    all_finite,
    array_namespace,
    check_like,
    is_array,
    largest,
    to_numpy,
)
from geodiag.core.spaces import Space
from geodiag.errors import ArgumentError, GeodiagError, ShapeError, shown

DEFAULTS = (("reduction", "mean"), ("engine", "auto"), ("stop_gradient", "constant"))
STOP_GRADIENT = ("constant", "error", "differentiate")


def is_number(x: Any) -> TypeGuard[float]:
    """Whether ``x`` is a real number that a float can hold, of Python's own or of NumPy's types."""
    if isinstance(x, bool) or not isinstance(x, Real):
        return False
    try:
        float(x)
    except OverflowError:
        return False
    return True


def is_whole(x: Any) -> TypeGuard[int]:
    """Whether ``x`` is an integer, of Python's own or of NumPy's types, and no truth value."""
    return isinstance(x, Integral) and not isinstance(x, bool)


def is_iterable(x: Any) -> TypeGuard[Iterable[Any]]:
    """Whether it can be iterated over, as an array of no dimensions cannot."""
    return isinstance(x, Iterable) and getattr(x, "ndim", 1) != 0


def as_number(x: Any) -> float | None:
    """A number, or a 0-d array of any framework, as a float; None where it is neither."""
    if isinstance(x, (bool, np.bool_, str, bytes, bytearray)) or getattr(x, "shape", ()) != ():
        return None
    if "complex" in str(getattr(x, "dtype", "")) or (
        isinstance(x, Complex) and not isinstance(x, Real)
    ):
        return None
    try:
        return float(x)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # each framework has its own
        return None


def whole_step(step: Any) -> int:
    """The number of a step, where it is one.

    Raises:
        ArgumentError: it is no whole number.
    """
    number = step if is_whole(step) else as_number(step)
    if number is None or number != number or abs(number) == float("inf") or number != int(number):
        raise ArgumentError("the step must be a whole number", got=shown(step))
    return int(number)


def require_flag(x: Any, name: str) -> bool:
    """``x`` as True or False.

    Raises:
        ArgumentError: it is neither.
    """
    if not isinstance(x, (bool, np.bool_)):
        raise ArgumentError(f"{name} must be True or False", got=shown(x))
    return bool(x)


def is_true(answer: Any, name: str) -> bool:
    """What a user's function answered, as True or False.

    Raises:
        ArgumentError: it is neither true nor false, as an array.
    """
    try:
        return bool(answer)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ArgumentError(
            f"{name} must answer True or False", got=shown(answer), do="reduce it, e.g. by .any()"
        ) from e


def check_engine(engine: Any, engines: Sequence[str], memory: Any) -> None:
    """Raise ArgumentError for an unknown engine, or a ``memory`` that is no number of bytes."""
    if not isinstance(engine, str) or engine not in engines:
        do = f"use one of {', '.join(map(repr, engines))}"
        raise ArgumentError("unknown engine", got=shown(engine), do=do)
    if memory is not None and not (is_number(memory) and 0 <= memory < float("inf")):
        raise ArgumentError("memory= must be a number of bytes", got=shown(memory))


def check_stop_gradient(how: Any) -> None:
    """Raise ArgumentError for an unknown way to treat what is detached."""
    if not isinstance(how, str) or how not in STOP_GRADIENT:
        do = f"use one of {', '.join(map(repr, STOP_GRADIENT))}"
        raise ArgumentError("unknown stop_gradient=", got=shown(how), do=do)


def own_arithmetic() -> AbstractContextManager[None]:
    """NumPy's floating-point warnings off, whatever the user has set: results are checked here."""
    return np.errstate(all="ignore")


def refuse(arguments: Mapping[str, Any], what: str, do: str) -> None:
    """An ArgumentError if there is an argument, not at its default, that could only be ignored."""
    given = [f"{k}=" for k, v in arguments.items() if not _is_default(k, v)]
    if given:
        raise ArgumentError(f"{what} has no use for {', '.join(given)}", do=do)


def _is_default(name: str, value: Any) -> bool:
    return value is None or (isinstance(value, str) and (name, value) in DEFAULTS)


def is_real(x: Any) -> bool:
    """Whether ``x`` is an array of real numbers, with nothing masked out of it."""
    if not is_array(x) or isinstance(x, np.ma.MaskedArray):
        return False
    try:
        return bool(array_namespace(x).isdtype(x.dtype, ("real floating", "integral")))
    except (TypeError, ValueError):  # a dtype that the array API does not know
        return False


def as_blocks(
    given: Any, space: Space, what: str, error: type[GeodiagError] = ShapeError
) -> Blocks:
    """``given`` as blocks of the space, in its namespace, dtype and device.

    A Python float is an array of shape ().

    Raises:
        ShapeError: (or ``error``) other names or shapes, or not arrays of real numbers.
    """
    if isinstance(given, Mapping):
        given = {n: np.asarray(x) if type(x) is float else x for n, x in given.items()}
    check_like(given, space.shapes, what, error)
    return {name: _moved(given[name], name, space, what, error) for name in space.names}


def as_step(given: Any, space: Space) -> Blocks:
    """``step=`` as blocks of the space.

    Raises:
        ShapeError: it has other names or shapes.
        ArgumentError: it is zero or not finite.
    """
    s = as_blocks(given, space, "step")
    if not bool(all_finite(s)) or not bool(largest(s) > 0):
        raise ArgumentError(
            "step= must be finite and not zero: nothing moved",
            do="pass w⁺ − w of a step that was taken",
        )
    return s


def _moved(x: Any, name: str, space: Space, what: str, error: type[GeodiagError]) -> Array:
    if not is_real(x):
        raise error(
            f"{what} must hold arrays of real numbers; it does not at {name!r}",
            got=f"{type(x).__name__} of dtype {getattr(x, 'dtype', None)}",
        )
    try:
        return space.place(name, x.detach() if hasattr(x, "detach") else x)
    except (TypeError, ValueError, RuntimeError) as e:  # each framework has its own
        raise error(f"{what} cannot be moved to where the parameters are", got=shown(e)) from e


def on_host(x: Any, what: str, error: type[GeodiagError]) -> np.ndarray[Any, Any]:
    """An array of real numbers as float64 in host memory.

    Raises:
        GeodiagError: the class ``error``, where it is none.
    """
    x = np.asarray(x) if isinstance(x, (float, int)) and not isinstance(x, bool) else x
    if not is_real(x):
        got = f"{type(x).__name__} of dtype {getattr(x, 'dtype', None)}"
        raise error(f"{what} must be an array of real numbers", got=got)
    try:
        return to_numpy(x.detach() if hasattr(x, "detach") else x).astype(np.float64)
    except (TypeError, ValueError, RuntimeError, BufferError) as e:
        raise error(f"{what} cannot be read from its framework", got=shown(e)) from e


def is_mapping_of_names(x: Any) -> bool:
    """Whether ``x`` is a mapping whose keys are texts."""
    return isinstance(x, Mapping) and all(isinstance(name, str) for name in x)
