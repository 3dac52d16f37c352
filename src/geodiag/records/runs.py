"""The runs of a log: its records by the run that they belong to, with what is known of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from geodiag.core.validation import is_iterable
from geodiag.errors import ArgumentError, import_optional, shown
from geodiag.records.display import records_table
from geodiag.records.header import Header
from geodiag.records.reading import read_lines
from geodiag.records.record import BUILT_IN, Record


class Run(list[Record]):
    """The records of one run, in their order.

    Attributes:
        id: of the run, as in :attr:`Record.run`; "" for records of older versions.
        header: what the log says of the run: ``norm``, ``optimizer`` with its hyper-parameters,
            ``model`` with its size, ``data`` (shapes), ``versions``, ``seed``, ``command``. Plain
            values as they were in the file; {} where the log says nothing.
        label: what a plot calls it.

    Examples:
        >>> run = geodiag.records.Run([geodiag.Record(0, loss=0.5)], "3f2a", {"norm": "L2()"})
        >>> run.id, run.label, len(run)
        ('3f2a', 'L2()', 1)
    """

    def __init__(
        self, records: Iterable[Record], id: str = "", header: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(records)
        self.id, self.header = id, dict(header or {})
        self.label = Header(id, self.header).label

    def _repr_html_(self) -> str:
        return records_table(f"Run {self.id}: {self.label}, {len(self)} records", self)

    def __repr__(self) -> str:
        return f"Run({self.id!r}, {shown(self.label)}, {len(self)} records)"


def read_runs(path: str | Path) -> list[Run]:
    """The runs of a log, in the order in which they began, each with its records and its header.

    A run that was resumed in the same log is one run; the header is that of its beginning. Records
    of older versions, which have no run, are one run together.

    Args:
        path: a file that the Monitor wrote, as for :func:`geodiag.read_records`.

    Returns:
        list[Run]: each a list of its records, with ``id``, ``header`` and ``label``.

    Raises:
        ArgumentError: the file cannot be read, or is no log.

    Examples:
        >>> w, new = {"x": np.ones(2)}, {"x": np.zeros(2)}
        >>> for lr in (0.5, 0.25):
        ...     with geodiag.Monitor(np.eye(2), lr=lr, log="runs.jsonl") as monitor:
        ...         _ = monitor.observe(0, w, new)
        >>> runs = geodiag.read_runs("runs.jsonl")
        >>> [(run.header["optimizer"]["lr"], round(run[0].ratio, 6)) for run in runs]
        [(0.5, 0.25), (0.25, 0.125)]
    """
    return by_run(read_lines(path))


def by_run(lines: Iterable[Record | Header]) -> list[Run]:
    """Records by their run, with the first header of each."""
    records: dict[str, list[Record]] = {}
    headers: dict[str, Mapping[str, Any]] = {}
    for each in lines:
        if isinstance(each, Header):
            headers.setdefault(each.run, each.values)
        else:
            records.setdefault(each.run, []).append(each)
    return [Run(found, run, headers.get(run)) for run, found in records.items()]


def to_pandas(records: str | Path | Iterable[Record]) -> Any:
    """Records as a pandas DataFrame: a row for each, a column for each value.

    Args:
        records: records, a run, or the path of a log.

    Returns:
        pandas.DataFrame: with the columns of :class:`geodiag.Record`, then those of extras.

    Raises:
        MissingDependency: pandas is not installed.
        ArgumentError: these are no records.

    Examples:
        >>> frame = geodiag.to_pandas("run.jsonl")  # doctest: +SKIP
    """
    return import_optional(
        "pandas", what="to_pandas needs pandas", do="pip install pandas"
    ).DataFrame(columns_of(records))


def to_polars(records: str | Path | Iterable[Record]) -> Any:
    """Records as a polars DataFrame; as :func:`to_pandas`.

    Args:
        records: records, a run, or the path of a log.

    Returns:
        polars.DataFrame: with the columns of :class:`geodiag.Record`, then those of extras.

    Raises:
        MissingDependency: polars is not installed.
        ArgumentError: these are no records.

    Examples:
        >>> frame = geodiag.to_polars("run.jsonl")  # doctest: +SKIP
    """
    return import_optional(
        "polars", what="to_polars needs polars", do="pip install polars"
    ).DataFrame(columns_of(records), strict=False)


def columns_of(records: str | Path | Iterable[Record]) -> dict[str, list[Any]]:
    """The values of records by their names; None where one lacks an extra that another has."""
    if isinstance(records, (str, os.PathLike)):
        records = [x for x in read_lines(records) if isinstance(x, Record)]
    found: list[Any] = list(records) if is_iterable(records) else [records]
    for each in found:
        if not isinstance(each, Record):
            raise ArgumentError(
                "a table is of records",
                got=type(each).__name__,
                do="pass monitor.records, a run of geodiag.read_runs, or the path of a log",
            )
    extras = dict.fromkeys(name for r in found for name in r.extras)
    columns = {name: [getattr(r, name) for r in found] for name in BUILT_IN}
    return columns | {name: [r.extras.get(name) for r in found] for name in extras}
