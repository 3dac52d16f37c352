"""A quantity that a Record carries: its name, how it is measured, and how it is drawn."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from geodiag.errors import ArgumentError, shown

KINDS = (float, int, str)
MARKS = ("line", "thin", "dots", "dashes", "band")
SCALES = ("linear", "zero", "log", "wide")
RESERVED = ("extras", "schema", "to_dict")


def is_name(x: Any) -> TypeGuard[str]:
    """Whether ``x`` can name a quantity: an identifier, not reserved, not beginning with ``_``."""
    return isinstance(x, str) and x.isidentifier() and not x.startswith("_") and x not in RESERVED


@dataclass(frozen=True)
class Panel:
    """One set of axes in :func:`geodiag.plot`; quantities with equal panels share it.

    Attributes:
        label: of the vertical axis; default: label and unit of the panel's first quantity.
        height: relative to the other panels.
        scale: "linear"; "zero": linear, with 0 in view, and logarithmic beyond where single values
            would flatten the rest; "log": logarithmic where all values are positive; "wide":
            logarithmic where most also span more than a factor of 30, else zero.
        line: the height of a dashed horizontal line, which is then always well in view, or None.
    """

    label: str = ""
    height: float = 1.0
    scale: str = "linear"
    line: float | None = None

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ArgumentError(
                "a panel has an unknown scale", got=shown(self.scale), do=f"use one of {SCALES}"
            )


@dataclass(frozen=True)
class Quantity:
    """What a :class:`geodiag.Record` carries under one name.

        >>> from geodiag.records import Panel, Quantity
        >>> Quantity("slope", "mean |gradient|", measure=lambda o: 0.5, panel=Panel()).title
        'mean |gradient|'

    Attributes:
        name: an identifier; the key in JSON lines, the column in CSV, the attribute of a Record.
        label: in legends and on axes; default: the name.
        unit: of the value; "" where it has none.
        kind: float, int or str.
        measure: called with the :class:`~geodiag.monitoring.observation.Observation` of a step,
            returns the value. An exception becomes a note of the record, and the value is then
            :attr:`default`. None: the Monitor sets the value itself.
        panel: where :func:`geodiag.plot` draws it; None: nowhere.
        mark: "line", "thin", "dots", "dashes", or "band": filled from the panel's first line up to
            the value.
        column: the heading in ``geodiag watch``; "": the name; None: not shown there.
        error: the field of the Record that holds its standard error, drawn as a band; "": none.
        bound: the field of the Record that reads "LOWER" where the value is a lower bound only.
        choices: the texts allowed in a log; (): any.

    Raises:
        ArgumentError: an attribute cannot be used.
    """

    name: str
    label: str = ""
    unit: str = ""
    kind: type = float
    measure: Callable[[Any], Any] | None = None
    panel: Panel | None = None
    mark: str = "line"
    column: str | None = ""
    bound: str = ""
    choices: tuple[str, ...] = ()
    error: str = ""

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ArgumentError(
                "the name of a quantity must be an identifier that does not begin with _",
                got=shown(self.name),
                do=f"use another name; {', '.join(RESERVED)} are taken",
            )
        wrong = {
            "kind": self.kind not in KINDS,
            "measure": self.measure is not None and not callable(self.measure),
            "panel": self.panel is not None and not isinstance(self.panel, Panel),
            "mark": self.mark not in MARKS,
        }
        for attribute, refused in wrong.items():
            if refused:
                what = f"{attribute}= of the quantity {self.name!r} cannot be used"
                raise ArgumentError(what, got=shown(getattr(self, attribute)))

    @property
    def title(self) -> str:
        """The label, and the unit if there is one."""
        label = self.label or self.name
        return f"{label} ({self.unit})" if self.unit else label

    @property
    def default(self) -> Any:
        """The value where none is known: NaN, 0 or ""."""
        return math.nan if self.kind is float else self.kind()

    def parse(self, x: Any) -> Any:
        """A value of a log, as this quantity's kind.

        Raises ``TypeError``, ``ValueError`` or ``OverflowError`` if it is of another kind.
        """
        if self.kind is str:
            if not isinstance(x, str) or (self.choices and x not in self.choices):
                raise TypeError(self.name)
            return sys.intern(x)  # many records have the same
        if isinstance(x, bool) or (self.kind is int and isinstance(x, float)):
            raise TypeError(self.name)
        return self.default if x is None and self.kind is float else self.kind(x)
