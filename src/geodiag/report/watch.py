"""``geodiag watch``: live tables of logs, in the terminal (needs rich)."""

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
from geodiag.records import EDGE, Header, Quantity, Record, value_text, with_parts
from geodiag.records.header import labels
from geodiag.records.reading import is_file, parse, parser, read_lines

BARS = "▁▂▃▄▅▆▇█"
UNKNOWN = "·"
WIDE = 12  # characters of a column of texts, at least
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
        self.new: list[Record] = []  # of the last update
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
        self.new = [each for each in found if isinstance(each, Record)]
        self.headers |= headers_of(found)
        self.records = [*self.records, *self.new][-self._kept :]
        return bool(found)

    def _forget(self) -> None:
        self.headers = {}
        self.records, self._read, self._at, self._rest = [], parser(self.path), 0, b""


def run(
    paths: Path | Sequence[Path], *, lines: int = 12, interval: float = 1.0, once: bool = False
) -> int:
    """Show the last records of logs as they come, until interrupted. Returns 0.

    A log is read again every ``interval`` seconds, and waited for if it is missing; with ``once``,
    all are shown as they are. Where the output is no terminal, each new record is a line of it.

    Raises:
        ArgumentError: with ``once``, a file is missing or no log; a number is out of its range.
        MissingDependency: rich is not installed.
    """
    if lines < 1 or not interval > 0:
        raise ArgumentError("lines and interval must be positive", got=f"{lines}, {interval}")
    logs = list(dict.fromkeys([paths] if isinstance(paths, Path) else paths))
    console, each = _rich("rich.console").Console(), max(1, lines // len(logs))
    if once:
        for number, path in enumerate(logs):
            found = read_lines(path)
            if number:
                console.print()
            records = [x for x in found if isinstance(x, Record)]
            console.print(view(path, records, each, console.width, headers_of(found)))
        return 0
    tails = [Tail(path, max(KEPT, lines)) for path in logs]
    if not console.is_terminal:
        return _lines(tails, interval)
    group = _rich("rich.console").Group
    with _rich("rich.live").Live(console=console, auto_refresh=False) as live:
        while True:
            for tail in tails:
                while tail.update():  # a long log, piece by piece
                    pass
            shown = [
                part
                for t in tails
                for part in ("", view(t.path, t.records, each, console.width, t.headers))
            ]
            live.update(group(*shown[1:]), refresh=True)
            time.sleep(interval)


def _lines(tails: Sequence[Tail], interval: float) -> int:
    """Each new record as a line, after the name of its log where there are several."""
    while True:
        for tail in tails:
            name = f"{printable(str(tail.path))}: " if len(tails) > 1 else ""
            while tail.update():
                for record in tail.new:
                    print(f"{name}{' '.join(str(record).split())}", flush=True)
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

    The title names the last run, to which the line belongs; records of others have a column. The
    last note stands below.
    """
    cells, name = _rich("rich.text").Text, printable(str(path))
    if not records:
        return cells(f"waiting for the first record in {name}", style="dim")
    last, run = records[-lines:], records[-1].run
    ids = list(dict.fromkeys(r.run for r in last))
    texts = labels(headers.get(each, Header(each)) for each in ids)
    of = {each: printable(cut(text)) for each, text in zip(ids, texts, strict=True)}
    name += f": {of[run]}" if of[run] else ""
    table = _rich("rich.table").Table(box=None)
    shown = _fitting(last, width - (WIDE if len(of) > 1 else 0))
    for each, cells_of in shown.items():
        text, heading = each.kind is str, printable(each.column or each.name)
        table.add_column(cells(heading), justify="left" if text else "right", no_wrap=True,
                         min_width=WIDE if text else max(map(len, [heading, *cells_of])),
                         overflow="ellipsis", ratio=1 if text else None)  # fmt: skip
    if len(of) > 1:
        table.add_column(cells("run"), overflow="ellipsis", no_wrap=True, ratio=1)
    for i, record in enumerate(last):
        row = [cells_of[i] for cells_of in shown.values()]
        table.add_row(*map(cells, [*row, of[record.run]] if len(of) > 1 else row))
    said = next((r for r in reversed(last) if r.note), None)
    notes = [cells(f" step {said.step}: {printable(cut(said.note))}", style="dim")] if said else []
    same = [r for r in records if r.run == run]
    heading = cells(name, style="italic")
    return _rich("rich.console").Group(heading, table, *notes, cells(_trend(same, width)))


def _fitting(records: Sequence[Record], width: int) -> dict[Quantity, list[str]]:
    """The quantities that are known, with their values as texts; as many as fit into ``width``.

    Texts come last, and notes have a line of their own. Where there are too many, costs and texts
    give way first, then the last ones.
    """
    found = {
        each: texts
        for each in sorted(with_parts(records).values(), key=lambda q: q.kind is str)
        if each.column is not None and each.name != "note"
        if any(texts := [value_text(r, each) for r in records])
    }
    widths = {
        each: 2 + (WIDE if each.kind is str else max(map(len, [each.column or each.name, *texts])))
        for each, texts in found.items()
    }
    costly = [each for each in found if each.kind is str or each.name == "num_hvps"]
    giving_way = [*costly, *(each for each in reversed(found) if each not in costly)]
    while sum(widths[each] for each in found) > width and len(found) > 1:
        del found[giving_way.pop(0)]
    return found


def sparkline(values: Sequence[float], top: float) -> str:
    """One bar for each value, from 0 to ``top``; a dot if it is not known."""
    return "".join(
        BARS[max(0, math.ceil(len(BARS) * min(1.0, max(0.0, x / top))) - 1)]
        if math.isfinite(x)
        else UNKNOWN
        for x in values
    )


def _trend(records: Sequence[Record], width: int) -> str:
    """The ratios of the run; where it has none, those of its parts by name, a line for each."""
    last, lines = records[-max(8, width - 24) :], []
    for each in with_parts(last).values():
        if each.panel is not EDGE or each.mark == "dots":  # ζ has no line
            continue
        found = [getattr(r, each.name, math.nan) for r in last]
        ratios = [x if isinstance(x, float) else math.nan for x in found]
        known = [x for x in ratios if math.isfinite(x)]
        if known:
            top, name = max(1.0, *known), printable(each.column or each.name)
            bars = sparkline(ratios[-max(8, width - 13 - len(name)) :], top)
            lines.append(f"\n{name} {bars} (█ is {top:.3g})")
    return "".join(lines) or "\nS/threshold is not known"
