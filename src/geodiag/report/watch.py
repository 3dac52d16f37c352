"""``geodiag watch``: a live view of a run's log, in the terminal (needs rich)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from geodiag.errors import ArgumentError, MissingDependency
from geodiag.records import Record, parse, parser, read_records

BARS = "▁▂▃▄▅▆▇█"
UNKNOWN = "·"
COLUMNS = {  # of the table: the record's field by its title
    "step": "step",
    "loss": "loss",
    "S": "sharpness",
    "upper": "upper",
    "D": "directional_smoothness",
    "threshold": "threshold",
    "S/threshold": "ratio",
    "HVPs": "num_hvps",
    "note": "note",
}


class Tail:
    """A log that grows: its records so far, by whole lines, each read once."""

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, list[Record]()
        self._read, self._at, self._rest = parser(path), 0, b""

    def update(self) -> bool:
        """Read what has come since the last time; whether it was anything.

        A file that is not there yet, or no longer, is an empty one; one that has become shorter
        was written anew.
        """
        new = b""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._at:
                    self._forget()
                file.seek(self._at)
                new = file.read()
        except FileNotFoundError:
            self._forget()
        except OSError as e:
            raise ArgumentError("the log cannot be read", got=str(e)) from e
        self._at += len(new)
        whole, _, self._rest = (self._rest + new).rpartition(b"\n")
        found, _ = parse(whole.decode("utf-8", errors="replace") + "\n", self._read)
        self.records += found
        return bool(found)

    def _forget(self) -> None:
        self.records, self._at, self._rest = [], 0, b""


def run(path: Path, *, lines: int = 12, interval: float = 1.0, once: bool = False) -> int:
    """Show the last records of a log as they come, until interrupted; returns 0.

    Args:
        path: the log; where it is missing, it is waited for.
        lines: how many records to show.
        interval: seconds between two looks at the file.
        once: show what is there, and return.

    Raises:
        ArgumentError: with ``once``, a file that is missing or no log; a number out of its range.
        MissingDependency: rich is not installed.
    """
    if lines < 1 or not interval > 0:
        raise ArgumentError("lines and interval must be positive", got=f"{lines}, {interval}")
    console = _rich("rich.console").Console()
    if once:
        console.print(view(path, read_records(path), lines, console.width))
        return 0
    tail = Tail(path)
    with _rich("rich.live").Live(console=console, auto_refresh=False) as live:
        while True:
            tail.update()
            live.update(view(path, tail.records, lines, console.width), refresh=True)
            time.sleep(interval)


def view(path: Path, records: Sequence[Record], lines: int = 12, width: int = 80) -> Any:
    """The last records as a table, over a line of the ratios so far, for rich to print."""
    if not records:
        return _rich("rich.text").Text(f"waiting for the first record in {path}", style="dim")
    table = _rich("rich.table").Table(title=str(path), title_justify="left", box=None)
    shown = [title for title, name in COLUMNS.items() if any(_cell(r, name) for r in records)]
    for title in shown:
        text = title == "note"
        table.add_column(title, justify="left" if text else "right", overflow="ellipsis",
                         no_wrap=True, ratio=1 if text else None)  # fmt: skip
    cells = _rich("rich.text").Text
    for record in records[-lines:]:
        table.add_row(*(cells(_cell(record, COLUMNS[title])) for title in shown))
    return _rich("rich.console").Group(table, cells(_trend(records, width)))


def sparkline(values: Sequence[float], top: float) -> str:
    """One bar for each value, from 0 to ``top``; a dot where it is not known."""
    return "".join(
        BARS[min(len(BARS) - 1, max(0, math.ceil(len(BARS) * x / top) - 1))]
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


def _cell(record: Record, name: str) -> str:
    value = getattr(record, name)
    if isinstance(value, float):
        text = "" if value != value else f"{value:.4g}"
        return f"≥ {text}" if text and name == "sharpness" and record.bound == "LOWER" else text
    return str(value)


def _rich(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as e:
        raise MissingDependency(
            "the live view needs rich", got=str(e), do='pip install "geodiag[watch]"'
        ) from e
