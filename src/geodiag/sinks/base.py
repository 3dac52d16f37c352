"""The contract of a sink, and the numbers of a record that a tracker's chart can show."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from geodiag.errors import printable
from geodiag.records import Header, Record

PREFIX = "geodiag/"


class Sink(ABC):
    """Takes records, one by one. The Monitor turns an exception of a sink into one warning."""

    def start(self, header: Header) -> None:
        """Called before the first record, with what is known of the run; by default nothing."""
        return None

    @abstractmethod
    def write(self, record: Record) -> None:
        """Take one record. When this returns, the record must be kept.

        The training waits for it: what may be slow does its work in a thread of its own, as
        :class:`~geodiag.sinks.background.Background` does.
        """

    def close(self) -> None:
        """Called after the last record, possibly twice; does nothing by default."""
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


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of a header in one level, as trackers have parameters.

    >>> flat({"norm": "L2()", "optimizer": {"name": "SGD", "lr": 0.1}})
    {'norm': 'L2()', 'optimizer.name': 'SGD', 'optimizer.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for name, x in values.items():
        found |= flat(x, f"{above}{name}.") if isinstance(x, Mapping) else {above + name: x}
    return found


def config(header: Header, prefix: str = PREFIX) -> dict[str, Any]:
    """The header as a tracker's config has it, under the prefix.

    >>> config(Header("3f2a", {"norm": "L2()"}))
    {'geodiag': {'run': '3f2a', 'norm': 'L2()'}}
    """
    return {prefix.strip("/") or "geodiag": {"run": header.run, **header.values}}


def header_text(header: Header) -> str:
    r"""The header as a text for a tracker, with a line for each value; Markdown leaves it as it is.

    >>> header_text(Header("3f2a", {"norm": "L2()"}))
    '    run: 3f2a\n    norm: L2()'
    """
    values = {"run": header.run, **flat(header.values)}
    return printable("\n".join(f"    {name}: {x}" for name, x in values.items()))


def metrics(record: Record, prefix: str = PREFIX) -> dict[str, float]:
    """The finite numbers of a record, those of plugins included, without the step.

    >>> metrics(Record(3, loss=0.5))
    {'geodiag/loss': 0.5, 'geodiag/num_hvps': 0}
    """
    return {
        prefix + name: x
        for name, x in record.to_dict().items()
        if name != "step" and isinstance(x, (int, float)) and math.isfinite(x)
    }
