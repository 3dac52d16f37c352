"""Logs in files, which are only ever appended to, by whole lines.

Every line is one ``os.write`` to a file opened with ``O_APPEND``: a run that is killed leaves whole
lines, and two runs may share a file. Where a line was cut short (a full disk, a lost machine), by
whichever run, the next one ends it, and begins on a line of its own. A file that is deleted while
it is written to is made anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from geodiag.errors import ArgumentError, shown
from geodiag.records import HEADER, TORN, Record, to_csv, to_json
from geodiag.sinks.base import Call, Sink

Log: TypeAlias = "str | os.PathLike[str] | Sink | Callable[[Record], Any] | Sequence[Any] | None"


class _Lines(Sink):
    """A file of lines, appended to."""

    header = ""
    torn = ""  # what ends a line that was cut short, so that it does not look like a whole one

    def __init__(
        self, path: str | os.PathLike[str], to_line: Callable[[Record], str], fsync: bool
    ) -> None:
        self.path, self._to_line, self._fsync = Path(path), to_line, fsync
        self._file: int | None = None
        try:
            self._file = self._open()
            _size_and_end(self._file)
        except (OSError, ValueError) as e:  # a path with a NUL is a ValueError
            self.close()
            raise ArgumentError(
                "the log cannot be opened", got=str(e), do="pass a path that can be written to"
            ) from e

    def write(self, record: Record) -> None:
        if self._file is None:
            raise ArgumentError("the log is closed", got=str(self.path))
        if os.fstat(self._file).st_nlink == 0:  # deleted: nobody would ever read it
            anew = self._open()
            os.close(self._file)
            self._file = anew
        size, end = _size_and_end(self._file)
        line = self._to_line(record) + "\n"
        if self.header and size <= len(self.header) and end != b"\n":  # nothing, or a part of it
            line = f"{self.header}\n{line}"
        if end not in (b"", b"\n"):
            line = f"{self.torn}\n{line}"
        data = line.encode()
        written = os.write(self._file, data)
        if written < len(data):
            raise OSError(f"{written} of {len(data)} bytes were written to {self.path}")
        if self._fsync:
            os.fsync(self._file)

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, flags, 0o666)
        if self._fsync and hasattr(os, "O_DIRECTORY"):  # the file's own name must be safe too
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return file


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
    torn = TORN

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
                if isinstance(each, (list, tuple)):
                    raise ArgumentError("log= holds a list in a list", do="pass one list")
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


def _size_and_end(file: int) -> tuple[int, bytes]:
    """The file's size now, whoever wrote to it, and its last byte."""
    size = os.lseek(file, 0, os.SEEK_END)
    if size == 0:
        return 0, b""
    os.lseek(file, size - 1, os.SEEK_SET)
    return size, os.read(file, 1)
