"""The last records of a run as a table, for a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from geodiag.core.display import columns
from geodiag.errors import cut
from geodiag.records.record import Record, quantities, value_text

LAST = 8  # records that are shown
LONGEST = 60  # characters of a note


def records_table(title: str, records: Sequence[Record]) -> str:
    """A table as HTML, of the quantities that are known; every text is only text."""
    last = records[-LAST:]
    shown = [
        each
        for each in sorted(quantities().values(), key=lambda q: q.kind is str)
        if each.column is not None and any(value_text(r, each) for r in last)
    ]
    head = [each.column or each.name for each in shown]
    rows = [[cut(value_text(r, each), LONGEST) for each in shown] for r in last]
    return columns(title, head, rows)
