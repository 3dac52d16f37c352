"""Small checks of arguments."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeGuard

from geodiag.errors import ArgumentError

DEFAULTS = (("reduction", "mean"), ("engine", "auto"))


def is_number(x: Any) -> TypeGuard[float]:
    """Whether ``x`` is a real number: of Python's own or of NumPy's types."""
    return isinstance(x, Real)


def refuse(arguments: Mapping[str, Any], what: str, do: str) -> None:
    """An ArgumentError if there is an argument, not at its default, that could only be ignored."""
    given = [f"{k}=" for k, v in arguments.items() if not (v is None or (k, v) in DEFAULTS)]
    if given:
        raise ArgumentError(f"{what} has no use for {', '.join(given)}", do=do)
