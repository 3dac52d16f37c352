"""``geodiag watch``: a live table of a run's log, in the terminal (needs rich)."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from geodiag.errors import ArgumentError, cut, import_optional, printable
from geodiag.records import Header, Record, quantities, value_text
from geodiag.records.header import labels
from geodiag.records.reading import is_file, parse, parser, read_lines

BARS = "▁▂▃▄▅▆▇█"
UNKNOWN = "·"
KEPT = 2000  # records: more than a terminal shows
CHUNK = 2**24  # bytes

_rich = partial(import_optional, what="the live view needs rich", do='pip install "geodiag[watch]"')


class Tail:
    """A log that grows. ``records`` are the last of its whole lines; each line is read once.

    ``headers``: what the log says of its runs, by their ids.
    """

    def __init__(self, path: Path, kept: int = KEPT) -> None:
        self.path, self.records, self._kept = path, list[Record](), kept
        self.headers: dict[str, Header] = {}
        self._read, self._at, self._rest = parser(path), 0, b""

    def update(self) -> bool:
        """Read what was appended since the last call. Returns whether there were records.

        A missing file counts as empty; one that has become shorter is read from its beginning.
        """
        new = b""
        try:
            if not is_file(self.path):
                raise OSError(f"not a file: {str(self.path)!r}")
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._at:
                    self._forget()
                file.seek(self._at)
                new = file.read(CHUNK)
        except FileNotFoundError:
            self._forget()
        except OSError as e:
            raise ArgumentError("the log cannot be read", got=str(e)) from e
        self._at += len(new)
        whole, _, self._rest = (self._rest + new).rpartition(b"\n")
        found, _ = parse(io.BytesIO(whole + b"\n"), self._read)
        new_records = [each for each in found if isinstance(each, Record)]
        self.headers |= headers_of(found)
        self.records = [*self.records, *new_records][-self._kept :]
        return bool(found)

    def _forget(self) -> None:
        self.headers = {}
        self.records, self._read, self._at, self._rest = [], parser(self.path), 0, b""


def run(path: Path, *, lines: int = 12, interval: float = 1.0, once: bool = False) -> int:
    """Show the last records of a log as they come, until interrupted. Returns 0.

    The log is read again every ``interval`` seconds, and waited for if it is missing; with
    ``once``, it is shown as it is.

    Raises:
        ArgumentError: with ``once``, the file is missing or no log; a number is out of its range.
        MissingDependency: rich is not installed.
    """
    if lines < 1 or not interval > 0:
        raise ArgumentError("lines and interval must be positive", got=f"{lines}, {interval}")
    console = _rich("rich.console").Console()
    if once:
        found = read_lines(path)
        records = [each for each in found if isinstance(each, Record)]
        console.print(view(path, records, lines, console.width, headers_of(found)))
        return 0
    tail = Tail(path, max(KEPT, lines))
    with _rich("rich.live").Live(console=console, auto_refresh=False) as live:
        while True:
            while tail.update():  # a long log, piece by piece
                pass
            shown = view(path, tail.records, lines, console.width, tail.headers)
            live.update(shown, refresh=True)
            time.sleep(interval)


def headers_of(lines: Iterable[Record | Header]) -> dict[str, Header]:
    """The headers among the lines of a log, by their runs."""
    return {each.run: each for each in lines if isinstance(each, Header)}


def view(
    path: Path,
    records: Sequence[Record],
    lines: int = 12,
    width: int = 80,
    headers: Mapping[str, Header] = MappingProxyType({}),
) -> Any:
    """The last records as a table, above a line of the ratios S/threshold, for rich to print.

    The title names the last run, to which the line belongs; records of others have a column.
    """
    cells, name = _rich("rich.text").Text, printable(str(path))
    if not records:
        return cells(f"waiting for the first record in {name}", style="dim")
    last, run = records[-lines:], records[-1].run
    ids = list(dict.fromkeys(r.run for r in last))
    texts = labels(headers.get(each, Header(each)) for each in ids)
    of = {each: printable(cut(text)) for each, text in zip(ids, texts, strict=True)}
    name += f": {of[run]}" if of[run] else ""
    table = _rich("rich.table").Table(title=cells(name), title_justify="left", box=None)
    shown = [
        each
        for each in sorted(quantities().values(), key=lambda q: q.kind is str)  # texts come last
        if each.column is not None and any(value_text(r, each) for r in last)
    ]
    for each in shown:
        text, heading = each.kind is str, printable(each.column or each.name)
        table.add_column(cells(heading), justify="left" if text else "right",
                         overflow="ellipsis", no_wrap=True, ratio=1 if text else None)  # fmt: skip
    if len(of) > 1:
        table.add_column(cells("run"), overflow="ellipsis", no_wrap=True, ratio=1)
    for record in last:
        row = [value_text(record, each) for each in shown]
        table.add_row(*map(cells, [*row, of[record.run]] if len(of) > 1 else row))
    same = [r for r in records if r.run == run]
    return _rich("rich.console").Group(table, cells(_trend(same, width)))


def sparkline(values: Sequence[float], top: float) -> str:
    """One bar for each value, from 0 to ``top``; a dot if it is not known."""
    return "".join(
        BARS[max(0, math.ceil(len(BARS) * min(1.0, max(0.0, x / top))) - 1)]
        if math.isfinite(x)
        else UNKNOWN
        for x in values
    )


def _trend(records: Sequence[Record], width: int) -> str:
    ratios = [r.ratio for r in records[-max(8, width - 24) :]]
    known = [x for x in ratios if math.isfinite(x)]
    if not known:
        return "\nS/threshold is not known"
    top = max(1.0, *known)
    return f"\nS/threshold {sparkline(ratios, top)} (█ is {top:.3g})"
