"""Small checks of arguments."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeGuard


def is_number(x: Any) -> TypeGuard[float]:
    """Whether ``x`` is a real number: of Python's own or of NumPy's types."""
    return isinstance(x, Real)
