"""The contract of a sink, and what of a record a tracker's chart can show."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from geodiag.records import Record

PREFIX = "geodiag/"


class Sink(ABC):
    """Takes records, one by one. An exception of a sink is a warning, never the run's end."""

    @abstractmethod
    def write(self, record: Record) -> None:
        """Take one record; it must be safe when this returns."""

    def close(self) -> None:
        """No record follows; by default nothing is to be done. May be called twice."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Call(Sink):
    """A function as a sink."""

    def __init__(self, function: Callable[[Record], Any]) -> None:
        self.function = function

    def write(self, record: Record) -> None:
        self.function(record)

    def __repr__(self) -> str:
        return f"Call({getattr(self.function, '__qualname__', repr(self.function))})"


def metrics(record: Record, prefix: str = PREFIX) -> dict[str, float]:
    """The record's finite numbers by flat names, ``geodiag/sharpness``; the step is left out."""
    return {
        prefix + name: x
        for name, x in asdict(record).items()
        if name != "step" and isinstance(x, (int, float)) and math.isfinite(x)
    }
