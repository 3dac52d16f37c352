r"""CSV: rows under a header that names their columns.

NaN is empty, and a text is written on one line. One that begins with =, +, - or @ has an apostrophe
before it, for a spreadsheet would take it for a formula; reading removes it. What UTF-8 does not
have is written as an escape such as ``\ud800``. Columns are found by their names in the file's
header; unknown ones become extras. A later header in the same file names the columns of the rows
of its width that follow, so a run may append a row with a new column to an older log. Headers
within one log only ever become wider: a row then belongs to the header of its width, even if two
runs write at the same moment. Before the first record of a run there is a row without a step: its
``run`` is the run's id, and its ``note`` what is known of the run, as JSON.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from geodiag.errors import ArgumentError
from geodiag.records.header import Header, text_of
from geodiag.records.jsonl import header_of
from geodiag.records.record import BUILT_IN, Record, record_of, shortened

# What spreadsheets take for a formula, perhaps with apostrophes and what is not seen before it.
_FORMULA = re.compile("'*[\x00-\x1f\x7f\u200b\ufeff]*[=+\\-@＝＋－＠]")


def to_csv(record: Record, columns: Iterable[str] = tuple(BUILT_IN)) -> str:
    """The record's values as one row in the order of ``columns``, without the line's end.

    >>> to_csv(Record(3, loss=0.5), ["loss", "step", "lr"])
    '0.5,3,'
    """
    return _row(record.to_dict(), columns)


def header_to_csv(header: Header, columns: Iterable[str]) -> str:
    """The header as one row."""
    return _row({"run": header.run, "note": text_of(header)}, columns)


def from_header(line: str) -> tuple[str, ...]:
    """The columns that a line names; () where the line is no header.

    Every name is an identifier and one of them is ``step``; in a row, ``step`` is a number.
    """
    cells = line.split(",")  # identifiers are never quoted
    return tuple(cells) if "step" in cells and all(map(str.isidentifier, cells)) else ()


class Rows:
    """Reads a CSV log line by line.

    >>> read = Rows()
    >>> read("step,loss,noise"), read("3,0.5,0.25").noise
    (None, 0.25)
    """

    def __init__(self) -> None:
        self._columns = {len(BUILT_IN): tuple(BUILT_IN)}  # by width; without a header: these

    def __call__(self, line: str) -> Record | Header | None:
        """The record, or the header of a run; None for names of columns, and where all is empty.

        Raises:
            ArgumentError: no header has so many columns, or a value is of another type.
        """
        header = from_header(line)
        if header:
            self._columns[len(header)] = header
            return None
        cells = _cells(line)
        if not any(cells):
            return None
        columns = self._columns.get(len(cells))
        if columns is None:
            what = f"a row must have {' or '.join(map(str, sorted(self._columns)))} columns"
            raise ArgumentError(what, got=shortened(line))
        if not cells[columns.index("step")]:
            return self._header(dict(zip(columns, cells, strict=True)), line)
        named = zip(columns, cells, strict=True)
        return record_of({name: x or None for name, x in named if x or name not in BUILT_IN}, line)

    def _header(self, named: dict[str, str], line: str) -> Header:
        try:
            values = json.loads(named.get("note", ""))
        except (ValueError, RecursionError) as e:
            raise ArgumentError("a line of a log has no step", got=shortened(line)) from e
        return header_of(named.get("run"), values, line)


def _row(values: Mapping[str, Any], columns: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(_cell(values.get(name, "")) for name in columns)
    return out.getvalue()


def _cell(x: float | str) -> float | str:
    if isinstance(x, str):
        text = " ".join(x.split()).encode(errors="backslashreplace").decode()
        return f"'{text}" if _FORMULA.match(text) else text
    return "" if x != x else x


def _cells(line: str) -> list[str]:
    try:
        cells = next(csv.reader([line], strict=True))
        return [x[1:] if x[:1] == "'" and _FORMULA.match(x) else x for x in cells]
    except (csv.Error, StopIteration) as e:
        raise ArgumentError("a line of a log is not a CSV row", got=shortened(line)) from e
