"""How a Monitor shows itself: in a line of text, and in a notebook as a table of its records."""

from __future__ import annotations

from typing import Any

from geodiag.core.display import columns
from geodiag.errors import cut
from geodiag.norms import Norm
from geodiag.records import Record, quantities, value_text

LAST = 8  # records that a notebook shows
LONGEST = 60  # characters of a note there


class DisplayedRun:
    """What has records of a norm."""

    records: list[Record]
    _norm: Any

    def __repr__(self) -> str:
        last = f"; last: {self.records[-1]}" if self.records else ""
        return f"{type(self).__name__}({self._title()}{last})"

    def _repr_html_(self) -> str:
        last = self.records[-LAST:]
        shown = [
            each
            for each in sorted(quantities().values(), key=lambda q: q.kind is str)
            if each.column is not None and any(value_text(r, each) for r in last)
        ]
        head = [each.column or each.name for each in shown]
        rows = [[cut(value_text(r, each), LONGEST) for each in shown] for r in last]
        return columns(f"{type(self).__name__}: {self._title()}", head, rows)

    def _title(self) -> str:
        """How many records, and in which norm, where it is not the optimizer's."""
        count = len(self.records)
        norm = (
            f"norm {self._norm!r}, " if isinstance(self._norm, Norm) else ""
        )  # else the optimizer's
        return f"{norm}{count} record{'s' if count != 1 else ''}"
