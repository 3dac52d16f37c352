"""Log files, JSONL and CSV: appended to by whole lines, and never rewritten.

A record is one ``os.write`` to a file opened with ``O_APPEND``: a run that is killed leaves whole
lines, and runs may share a file. The header of a run is written with its first record. If a line
was cut short (full disk, power failure), by whichever run, the next write ends it first. A file
that is deleted during the run is created again.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from geodiag.errors import ArgumentError, printable, shown
from geodiag.records import BUILT_IN, Header, Record, to_csv, to_json
from geodiag.records.csv_format import from_header, header_to_csv
from geodiag.records.jsonl import header_to_json
from geodiag.sinks.base import Call, Sink

_open: weakref.WeakSet[_Lines] = weakref.WeakSet()  # of log= that names a path

Log: TypeAlias = "str | os.PathLike[str] | Sink | Callable[[Record], Any] | Sequence[Any] | None"


class _Lines(Sink):
    """A file of lines, appended to."""

    def __init__(
        self, path: str | os.PathLike[str], *, mode: str = "a", fsync: bool = False
    ) -> None:
        check_mode(mode)
        self.path, self._fsync, self._process = Path(path), fsync, os.getpid()
        self._empty = mode == "w"  # before the first record
        self._header: Header | None = None  # of the run
        self._begun = False  # whether the file has it
        self._file: int | None = None
        try:
            self._file = self._open()
            _size_and_end(self._file)
        except (OSError, ValueError) as e:  # a path with a NUL is a ValueError
            self.close()
            raise ArgumentError(
                "the log cannot be opened", got=str(e), do="pass a path that can be written to"
            ) from e

    def start(self, header: Header) -> None:
        self._header, self._begun = header, False

    def write(self, record: Record) -> None:
        if self._file is None:
            raise ArgumentError("the log is closed", got=str(self.path))
        if self._empty:
            os.ftruncate(self._file, 0)
            self._empty = False
        if os.fstat(self._file).st_nlink == 0:  # deleted: what is written would be lost
            created = self._open()
            os.close(self._file)
            self._file, self._begun = created, False
        size, end = _size_and_end(self._file)
        header = None if self._begun else self._header
        data = self._text(record, header, size, end in (b"", b"\n")).encode()
        written = os.write(self._file, data)
        if written < len(data):
            raise OSError(f"{written} of {len(data)} bytes were written to {self.path}")
        self._begun = True
        if self._fsync:
            os.fsync(self._file)

    @abstractmethod
    def _text(self, record: Record, header: Header | None, size: int, whole: bool) -> str:
        """What to append to a file of ``size`` bytes, the last line of which may not be whole."""

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def shares(self, other: _Lines) -> bool:
        """Whether both are open, in this process, on one file."""
        if self._file is None or other._file is None or self._process != other._process:
            return False
        return os.path.sameopenfile(self._file, other._file)

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
    """A log of one JSON object a line; see :mod:`geodiag.records.jsonl`.

    Args:
        path: the file, appended to; created, with its folders, if it is missing.
        mode: "a": append; "w": empty the file before the first record.
        fsync: wait at each record until it is on the disk: safe against a power failure too.

    Raises:
        ArgumentError: the file cannot be opened, or an unknown mode.
    """

    def _text(self, record: Record, header: Header | None, size: int, whole: bool) -> str:
        begin = "" if header is None else header_to_json(header) + "\n"
        return ("" if whole else "\n") + begin + to_json(record) + "\n"


class CSV(_Lines):
    """A log of one row a line, under a header; see :mod:`geodiag.records.csv_format`.

    Rows follow the columns that the file has. If it has none for one of the values, a header with
    the columns added is written first, and there is one warning: other readers than
    :func:`geodiag.read_records` may stop at it. Arguments and errors as for :class:`JSONL`.
    """

    _columns: tuple[str, ...] = ()  # of the last header in the file
    _added: tuple[str, ...] = ()  # the columns that the file did not have
    _warned = False

    def write(self, record: Record) -> None:
        super().write(record)
        if self._added and not self._warned:
            self._warned = True
            text = (
                f"{printable(str(self.path))} had no column for {', '.join(self._added)}: a second "
                "header was written into it; geodiag.read_records reads both parts"
            )
            try:
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            except RuntimeWarning:  # warnings are errors, and the record is written
                print(text, file=sys.stderr)

    def _text(self, record: Record, header: Header | None, size: int, whole: bool) -> str:
        self._find_headers(size)
        columns, lines = self._columns, list[str]()
        if not whole:
            # Cut within its note, a row looks like a whole one. With so many commas it has more
            # columns than any header, or a quotation without an end.
            lines.append("," * self._widest)
        missing = tuple(name for name in record.to_dict() if name not in columns)
        if missing:
            columns, self._added = columns + missing, missing if columns else ()
            lines.append(",".join(columns))
        if header is not None:
            lines.append(header_to_csv(header, columns))
        return "\n".join([*lines, to_csv(record, columns), ""])

    def _open(self) -> int:
        self._columns, self._widest = (), len(BUILT_IN)  # the widest of the file's headers
        self._searched = 0  # bytes
        return super()._open()

    def _find_headers(self, size: int) -> None:
        """Read what was appended since the last time, by this run or another."""
        assert self._file is not None
        if size < self._searched:  # the file was emptied
            self._columns, self._searched = (), 0
        os.lseek(self._file, self._searched, os.SEEK_SET)
        data = os.read(self._file, max(0, size - self._searched))
        whole = data[: data.rfind(b"\n") + 1]
        self._searched += len(whole)
        for line in whole.decode("utf-8", errors="replace").split("\n"):
            columns = from_header(line.removesuffix("\r"))
            if columns:
                self._columns = columns
                self._widest = max(self._widest, len(columns))


def check_mode(mode: Any) -> None:
    """Raise ArgumentError for an unknown ``mode=``."""
    if not isinstance(mode, str) or mode not in ("a", "w"):
        do = '"a" starts another run in the log, "w" empties it first'
        raise ArgumentError('mode= must be "a" or "w"', got=shown(mode), do=do)


def as_sinks(log: Log, mode: str = "a") -> list[Sink]:
    """The sinks of ``log=``: a path, a Sink, a function, a list of these, or None.

    ``mode``: of the files that are named by a path.

    Raises:
        ArgumentError: it is none of them, or a file that cannot be opened.
    """
    check_mode(mode)
    if log is None:
        return []
    if isinstance(log, Sink):
        return [log]
    if isinstance(log, (str, os.PathLike)):
        path = Path(log)
        kind: type[_Lines] | None = {".jsonl": JSONL, ".csv": CSV}.get(path.suffix.lower())
        if kind is None:
            raise ArgumentError(
                "log= has a suffix that names no format",
                got=str(path),
                do='end it in ".jsonl" or ".csv"',
            )
        return [_opened(kind(path, mode=mode))]
    if isinstance(log, (list, tuple)):
        found: list[Sink] = []
        try:
            for each in log:
                if isinstance(each, (list, tuple)):
                    raise ArgumentError("log= holds a list in a list", do="pass one list")
                found += as_sinks(each, mode)
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


def _opened(sink: _Lines) -> _Lines:
    """The sink. A warning says if another monitor, as of a notebook's cell, writes to its file."""
    if any(each.shares(sink) for each in _open):
        gc.collect()  # a monitor that nobody has any more closes its log
    if any(each.shares(sink) for each in _open):
        warnings.warn(
            f"{printable(str(sink.path))} is already the log of a monitor that is not closed: both "
            "write to it. Close or detach the other one, unless you mean it",
            RuntimeWarning,
            stacklevel=5,
        )
    _open.add(sink)
    return sink


def _size_and_end(file: int) -> tuple[int, bytes]:
    """The file's size and last byte now; another process may have written to it."""
    size = os.lseek(file, 0, os.SEEK_END)
    if size == 0:
        return 0, b""
    os.lseek(file, size - 1, os.SEEK_SET)
    return size, os.read(file, 1)
