"""How a Monitor shows itself: in a line of text, and in a notebook as a table of its records."""

from __future__ import annotations

from typing import Any

from geodiag.norms import Norm
from geodiag.records import Record
from geodiag.records.display import records_table


class DisplayedRun:
    """What has records of a norm."""

    records: list[Record]
    _norm: Any

    def __repr__(self) -> str:
        last = f"; last: {self.records[-1]}" if self.records else ""
        return f"{type(self).__name__}({self._title()}{last})"

    def _repr_html_(self) -> str:
        return records_table(f"{type(self).__name__}: {self._title()}", self.records)

    def _title(self) -> str:
        """How many records, and in which norm, where it is not the optimizer's."""
        count = len(self.records)
        norm = f"norm {self._norm!r}, " if isinstance(self._norm, Norm) else ""
        return f"{norm}{count} record{'s' if count != 1 else ''}"
