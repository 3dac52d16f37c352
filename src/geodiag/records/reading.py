"""Reading logs: every whole line of a file, and why another line is left out."""

from __future__ import annotations

import gc
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar

from geodiag.errors import ArgumentError, printable, shown
from geodiag.records.csv_format import Rows
from geodiag.records.header import Header
from geodiag.records.jsonl import from_json, from_object, objects
from geodiag.records.record import Record

T = TypeVar("T")
BLOCK, LONG = 256, 2**18  # lines that are decoded together, and their bytes

Line: TypeAlias = "Callable[[str], Record | Header | None]"


def parser(path: Path) -> Line:
    """What reads the file line by line: as CSV if its suffix is ``.csv``, else as JSON."""
    return Rows() if path.suffix.lower() == ".csv" else from_json


def is_file(path: Path) -> bool:
    """Whether it is a file, in which reading comes to an end, or there is nothing of this name.

    Raises ``OSError``, or ``ValueError`` for a path with a NUL.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True


def read_records(path: str | Path) -> list[Record]:
    """The records of a log, in the order in which they were written.

    Logs of other versions are read too: a missing field has its default, NaN for a number, and a
    name that this version does not know becomes one of :attr:`Record.extras`.

    Args:
        path: a file that the Monitor wrote: CSV if its suffix is ``.csv``, else JSONL.

    Returns:
        list[Record]: one for each whole line but the headers of runs, see :func:`read_runs`. A line
        that a crash cut short is left out, with a warning.

    Raises:
        ArgumentError: the file cannot be read, or is no log.

    Examples:
        >>> with geodiag.Monitor(np.eye(2), lr=0.5, log="run.jsonl") as monitor:
        ...     _ = monitor.observe(0, {"x": np.ones(2)}, {"x": np.zeros(2)})
        >>> [(r.step, round(r.ratio, 6)) for r in geodiag.read_records("run.jsonl")]
        [(0, 0.25)]
    """
    return [each for each in read_lines(path) if isinstance(each, Record)]


def read_lines(path: str | Path) -> list[Record | Header]:
    """The records and headers of a log, in their order; see :func:`read_records`."""
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError("a log is named by its path", got=shown(path))
    path = Path(path)
    try:
        if not is_file(path):
            raise OSError(f"not a file: {str(path)!r}")
        with path.open("rb") as file:  # line by line: the text of a long log may not fit in memory
            found, bad = _without_collector(lambda: parse(file, parser(path)))
    except (OSError, ValueError) as e:  # a path with a NUL is a ValueError
        raise ArgumentError(
            "the log cannot be read", got=str(e), do="pass the path of a .jsonl or .csv log"
        ) from e
    if bad and not found:
        raise ArgumentError(
            "the file is not a log of the Monitor",
            got=f"{path}, line {bad[0][0]}: {bad[0][1]}",
            do="pass a .jsonl or .csv file that geodiag.Monitor(log=...) wrote",
        )
    for number, why in bad:
        text = f"{printable(str(path))}, line {number} is left out: {why}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    return found


def _without_collector(run: Callable[[], T]) -> T:
    """``run()`` without Python's cyclic collector, which would look at every record many times."""
    was = gc.isenabled()
    gc.disable()
    try:
        return run()
    finally:
        if was:
            gc.enable()


def parse(
    lines: Iterable[bytes], read: Line
) -> tuple[list[Record | Header], list[tuple[int, str]]]:
    """What a log's lines hold, and (line number, reason) of each line that is left out."""
    found: list[Record | Header] = []
    bad: list[tuple[int, str]] = []
    start = 1
    for raws in _blocks(lines):
        texts = b"".join(raws).decode("utf-8", errors="replace").split("\n")[: len(raws)]
        decoded = objects(texts) if read is from_json else None
        for number, (raw, line) in enumerate(zip(raws, texts, strict=True), start):
            try:
                if decoded is not None:
                    each: Record | Header | None = from_object(decoded[number - start], line)
                elif not line.strip():
                    continue
                elif isinstance(read, Rows) and not raw.endswith(b"\n"):
                    # A row cut within its last column looks whole.
                    bad.append((number, "it is not finished"))
                    continue
                else:
                    each = read(line.removesuffix("\r"))
            except ArgumentError as e:
                bad.append((number, str(e)))
                continue
            if each is not None:
                found.append(each)
        start += len(raws)
    return found, bad


def _blocks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines, as many at a time as are soon decoded together and take little memory."""
    block: list[bytes] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if len(block) == BLOCK or size > LONG:
            yield block
            block, size = [], 0
    if block:
        yield block
