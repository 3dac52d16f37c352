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

from geodiag.records import BUILT_IN, Quantity, Record

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Indices: TypeAlias = "np.ndarray[Any, np.dtype[np.intp]]"

LARGEST = 1e100  # the largest number that is drawn
STATED, NOISE = re.compile(r"\bD ± (inf|[\d.]+(?:e[+-]?\d+)?)"), 0.5
COLUMNS = 2000  # more than a figure has pixels; runs of up to four times as many are drawn whole


class RunSeries(list[Record]):
    """The records of a run, with each quantity as an array."""

    def __init__(self, records: list[Record]) -> None:
        super().__init__(records)
        self._values: dict[str, Floats] = {}

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


def resolved(record: Record) -> Any:
    """D; where the note says that rounding may take half of it, the curvature along the step.

    The curvature is exact there, and steps that are lost to rounding are short: it is D's limit.
    Where it was not measured, nothing is drawn.
    """
    D, stated = record.directional_smoothness, STATED.search(record.note)
    lost = stated is not None and float(stated[1]) > NOISE * abs(D)
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
