"""Logs in files, which are only ever appended to, by whole lines.

Every line is one ``os.write`` to a file opened with ``O_APPEND``: a run that is killed leaves whole
lines, and two runs may share a file. Where a crash cut a line short (a full disk, a lost machine),
the next line begins on a line of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from geodiag.errors import ArgumentError, shown
from geodiag.records import HEADER, Record, to_csv, to_json
from geodiag.sinks.base import Call, Sink

Log: TypeAlias = "str | os.PathLike[str] | Sink | Callable[[Record], Any] | Sequence[Any] | None"


class _Lines(Sink):
    """A file of lines, appended to."""

    header = ""

    def __init__(
        self, path: str | os.PathLike[str], to_line: Callable[[Record], str], fsync: bool
    ) -> None:
        self.path, self._to_line, self._fsync = Path(path), to_line, fsync
        self._file: int | None = None
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, flags, 0o666)
            self._torn = not _ends_a_line(self._file)
        except OSError as e:
            self.close()
            raise ArgumentError(
                "the log cannot be opened", got=str(e), do="pass a path that can be written to"
            ) from e

    def write(self, record: Record) -> None:
        if self._file is None:
            raise ArgumentError("the log is closed", got=str(self.path))
        line = self._to_line(record) + "\n"
        if self.header and os.fstat(self._file).st_size == 0:
            line = f"{self.header}\n{line}"
        data = (("\n" if self._torn else "") + line).encode()
        self._torn = True  # until all of it is there
        written = os.write(self._file, data)
        if written < len(data):
            raise OSError(f"{written} of {len(data)} bytes were written to {self.path}")
        self._torn = False
        if self._fsync:
            os.fsync(self._file)

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


class JSONL(_Lines):
    """A log of one JSON object a line.

    Args:
        path: the file, appended to; it is made, with its folders, where it is missing.
        fsync: wait at each record until the disk has it: safe against the machine's end too.

    Raises:
        ArgumentError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = False) -> None:
        super().__init__(path, to_json, fsync)


class CSV(_Lines):
    """A log of one row a line, under a header; arguments and errors as for :class:`JSONL`."""

    header = HEADER

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = False) -> None:
        super().__init__(path, to_csv, fsync)


def open_file(path: Path) -> Sink:
    """The sink for a path, by its suffix.

    Raises:
        ArgumentError: another suffix than ``.jsonl`` and ``.csv``, or it cannot be opened.
    """
    kinds: dict[str, Callable[[Path], Sink]] = {".jsonl": JSONL, ".csv": CSV}
    if path.suffix.lower() not in kinds:
        raise ArgumentError(
            "the suffix of log= does not say what to write",
            got=str(path),
            do='end it in ".jsonl" or ".csv"',
        )
    return kinds[path.suffix.lower()](path)


def as_sinks(log: Log) -> list[Sink]:
    """``log=`` of the Monitor as sinks: a path, a Sink, a function, or a list of these.

    Raises:
        ArgumentError: it is none of them, or a file that cannot be opened.
    """
    if log is None:
        return []
    if isinstance(log, Sink):
        return [log]
    if isinstance(log, (str, os.PathLike)):
        return [open_file(Path(log))]
    if isinstance(log, (list, tuple)):
        found: list[Sink] = []
        try:
            for each in log:
                found += as_sinks(each)
        except BaseException:
            for sink in found:
                sink.close()
            raise
        return found
    if callable(log) and not isinstance(log, type):
        return [Call(log)]
    raise ArgumentError(
        "log= has an unknown form",
        got=shown(log),
        do='pass a path such as "run.jsonl", a geodiag.sinks.Sink, a function of a Record, or a '
        "list of these",
    )


def _ends_a_line(file: int) -> bool:
    """Whether the file is empty, or ends in a line's end."""
    if os.lseek(file, 0, os.SEEK_END) == 0:
        return True
    os.lseek(file, -1, os.SEEK_END)
    return os.read(file, 1) == b"\n"
