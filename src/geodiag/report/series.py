"""The numbers of a run that a figure shows.

Of a long run, a line is drawn through the first, the last, the least and the greatest value in each
column of pixels, which is the same picture (M4; Jugel, Jerzak, Hackenbroich and Markl, "M4: a
visualization-oriented time series data aggregation", VLDB 2014).
"""

from __future__ import annotations

import math
import re
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from geodiag.records import BUILT_IN, Quantity, Record, quantities

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Indices: TypeAlias = "np.ndarray[Any, np.dtype[np.intp]]"

LARGEST = 1e100  # the largest number that is drawn
# What the notes say of rounding, by the quantity; beyond the share NOISE of it D is not drawn.
STATED = re.compile(r"(?:^|[ ,])(\S+) ± (inf|\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
NOISE = 0.5
COLUMNS = 2000  # more than a figure has pixels; runs of up to four times as many are drawn whole


class RunSeries(list[Record]):
    """The records of a run, with each quantity as an array."""

    def __init__(self, records: list[Record]) -> None:
        super().__init__(records)
        self._values: dict[str, Floats] = {}
        self._states_errors: bool | None = None  # whether any note does

    @property
    def steps(self) -> Floats:
        """The steps of the records."""
        if "step" not in self._values:
            self._values["step"] = np.array([r.step for r in self], float)
        return self._values["step"]

    def values(self, quantity: Quantity) -> Floats:
        """The values that can be drawn; texts, and numbers beyond LARGEST, are NaN."""
        if quantity.name not in self._values:
            if quantity.name == "directional_smoothness":
                found = [resolved(r) if "±" in r.note else r.directional_smoothness for r in self]
            elif quantity.name in BUILT_IN:
                found = list(map(itemgetter(quantity.name), map(vars, self)))
            else:
                found = [r.extras.get(quantity.name, math.nan) for r in self]
            if set(map(type, found)) != {float}:
                known = (x if isinstance(x, (int, float)) else math.nan for x in found)
                found = [x if abs(x) <= LARGEST else math.nan for x in known]
            values = np.array(found, float)
            values[~(np.abs(values) <= LARGEST)] = math.nan
            values[np.abs(values) < 1 / LARGEST] = 0.0
            self._values[quantity.name] = values
        return self._values[quantity.name]

    def errors(self, quantity: Quantity) -> Floats | None:
        """The standard errors, or the bounds on rounding that the notes state; None without any.

        NaN where none is known, and where a D is drawn that has none.
        """
        if quantity.error:
            found = quantities().get(quantity.error)
            return None if found is None else np.abs(self.values(found))
        name = quantity.name if quantity.column == "" else quantity.column  # as a table has it
        if self._states_errors is None:
            self._states_errors = any("±" in r.note for r in self)
        if name is None or not self._states_errors:
            return None
        errors = np.array([stated(r.note, name) if "±" in r.note else math.nan for r in self])
        if name == "D":
            errors[self.values(quantity) != [r.directional_smoothness for r in self]] = math.nan
        errors[~(errors <= LARGEST)] = math.nan
        return None if np.isnan(errors).all() else errors

    def ends(self, quantity: Quantity) -> tuple[Floats, ...]:
        """The values less and plus their errors, where these are known."""
        errors = self.errors(quantity)
        if errors is None:
            return ()
        values = self.values(quantity)
        both = values - errors, values + errors
        return tuple(ends[np.isfinite(ends)] for ends in both)


def stated(note: str, name: str) -> float:
    """The error that a note states of "S", "D", "ζ" or "loss", the last one; NaN where none."""
    return float(dict(STATED.findall(note)).get(name, math.nan))


def resolved(record: Record) -> Any:
    """D; where the note says that rounding may take half of it, the curvature along the step.

    The curvature is exact there, and steps that are lost to rounding are short: it is D's limit.
    Where it was not measured, nothing is drawn.
    """
    D = record.directional_smoothness
    lost = stated(record.note, "D") > NOISE * abs(D)
    return record.curvature if lost else D


def thinned(steps: Floats, *lines: Floats) -> Indices:
    """The indices of the points that are drawn of lines over the same steps, in their order."""
    if len(steps) <= 4 * COLUMNS:
        return np.arange(len(steps))
    low, high = steps.min(), steps.max()
    column = np.floor((steps - low) * (COLUMNS / max(high - low, 1)))
    # Neighbours in one column; where a run was resumed, the steps go back.
    first = np.flatnonzero(np.diff(column, prepend=-1.0))
    group = np.repeat(np.arange(len(first)), np.diff(first, append=len(steps)))
    kept = [first, np.append(first[1:], len(steps)) - 1]
    for line in lines:
        for signed in (line, -line):
            heights = np.where(np.isnan(signed), -np.inf, signed)
            greatest = np.flatnonzero(heights == np.maximum.reduceat(heights, first)[group])
            kept.append(greatest[np.unique(group[greatest], return_index=True)[1]])
    return np.unique(np.concatenate(kept))
