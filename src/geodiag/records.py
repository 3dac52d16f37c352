"""What one measurement of a run says, and how it is written to a line and read back.

JSONL: one strict JSON object a line; NaN is null, infinity the text "Infinity" or "-Infinity".
CSV: a header and one row a line; NaN is empty. Reading only parses: no code of a file is run.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from geodiag.errors import ArgumentError, shown

NAN = math.nan
BOUNDS = ("EXACT", "LOWER", "")


@dataclass(frozen=True)
class Record:
    """One measurement of a training run: flat, typed, NaN where a number is not known."""

    step: int
    loss: float = NAN  # L(w), on the measured data
    lr: float = NAN
    sharpness: float = NAN  # S at w, in loss units per squared unit of the norm
    bound: str = ""  # what the value is to S: "EXACT", "LOWER", or "" where there is none
    upper: float = NAN  # a certified upper bound on S
    dual_norm: float = NAN  # ‖∇L(w)‖*
    directional_smoothness: float = NAN  # D along the step taken, w⁺ − w
    curvature: float = NAN  # ⟨s, ∇²L s⟩/‖s‖² along the same step s
    threshold: float = NAN  # the S at which the update rule loses stability
    ratio: float = NAN  # S/threshold: the edge of stability is at 1
    num_hvps: int = 0  # Hessian-vector products spent, every one counted
    seconds: float = NAN  # that the measurement took
    note: str = ""  # what failed, what is not known, and why


FIELDS = tuple(f.name for f in fields(Record))
KINDS: dict[str, Any] = {f.name: f.type for f in fields(Record)}  # their names, as annotated
HEADER = ",".join(FIELDS)
# Ends a row that was cut short. Within its note it would look like a whole one; with so many commas
# it has too many columns, or a quotation without an end.
TORN = "," * len(FIELDS)


def to_json(record: Record) -> str:
    """The record as one line of strict JSON, without the line's end."""
    plain = {name: _plain(value) for name, value in asdict(record).items()}
    return json.dumps(plain, allow_nan=False, ensure_ascii=False)


def from_json(line: str) -> Record:
    """The record of a line of :func:`to_json`; keys that a Record does not have are left out.

    Raises:
        ArgumentError: the line is no JSON object, has no step, or a value of another type.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ArgumentError("a line of a log is not JSON", got=_short(line)) from e
    if not isinstance(found, dict):
        raise ArgumentError("a line of a log is not a JSON object", got=_short(line))
    return _record(found, line)


def to_csv(record: Record) -> str:
    """The record as one row, in the order of ``HEADER``, without the line's end."""
    row = ["" if v != v else v for v in asdict(record).values()]
    row[-1] = " ".join(str(row[-1]).split())  # a note is kept to one line
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(row)
    return out.getvalue()


def from_csv(line: str) -> Record | None:
    """The record of a line of :func:`to_csv`; None for a header.

    Raises:
        ArgumentError: the line has another number of columns, or a value of another type.
    """
    if line == HEADER:
        return None
    try:
        row = next(csv.reader([line], strict=True))
    except (csv.Error, StopIteration) as e:
        raise ArgumentError("a line of a log is not a CSV row", got=_short(line)) from e
    if len(row) != len(FIELDS):
        raise ArgumentError(f"a row must have {len(FIELDS)} columns", got=_short(line))
    named = zip(FIELDS, row, strict=True)
    return _record({k: x for k, x in named if x or KINDS[k] == "str"}, line)


def parser(path: Path) -> Callable[[str], Record | None]:
    """How to read a line of the file: as CSV where it is named so, else as JSON."""
    return from_csv if path.suffix.lower() == ".csv" else from_json


def read_records(path: str | Path) -> list[Record]:
    """The records of a log, in the order in which they were written.

    Args:
        path: a file that the Monitor wrote: CSV where it is named ``.csv``, else JSONL.

    Returns:
        list[Record]: those of all whole lines. A line that a crash cut short is left out, with a
        warning.

    Raises:
        ArgumentError: the file cannot be read, or holds other things than records.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError("a log is named by its path", got=shown(path))
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except (OSError, ValueError) as e:  # a path with a NUL is a ValueError
        raise ArgumentError(
            "the log cannot be read", got=str(e), do="pass the path of a .jsonl or .csv log"
        ) from e
    found, bad = parse(text, parser(path))
    if bad and not found:
        raise ArgumentError(
            "the file is not a log of the Monitor",
            got=f"{path}, line {bad[0][0]}: {bad[0][1]}",
            do="pass a .jsonl or .csv file that geodiag.Monitor(log=...) wrote",
        )
    for number, why in bad:
        warnings.warn(f"{path}, line {number} is left out: {why}", RuntimeWarning, stacklevel=2)
    return found


def parse(
    text: str, read: Callable[[str], Record | None]
) -> tuple[list[Record], list[tuple[int, str]]]:
    """The records of whole lines, and (line number, reason) of every line that is none."""
    found, bad = [], []
    *lines, last = text.split("\n")
    if last and read is from_csv:  # cut inside its last column, a row would look whole
        bad.append((len(lines) + 1, "it is not finished"))
    elif last:
        lines.append(last)
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line.strip() or line == TORN:
            continue
        try:
            record = read(line)
        except ArgumentError as e:
            bad.append((number, str(e)))
            continue
        if record is not None:
            found.append(record)
    return found, sorted(bad)


def _record(found: dict[str, Any], line: str) -> Record:
    if "step" not in found:
        raise ArgumentError("a line of a log has no step", got=_short(line))
    try:
        return Record(**{k: _typed(k, found[k]) for k in FIELDS if k in found})
    except (TypeError, ValueError, OverflowError) as e:
        raise ArgumentError(
            "a line of a log holds a value of another type", got=_short(line)
        ) from e


def _typed(name: str, x: Any) -> Any:
    if KINDS[name] == "float":
        if isinstance(x, bool):
            raise TypeError(name)
        return NAN if x is None else float(x)
    if KINDS[name] == "int":
        if isinstance(x, (bool, float)):
            raise TypeError(name)
        return int(x)
    if not isinstance(x, str) or (name == "bound" and x not in BOUNDS):
        raise TypeError(name)
    return x


def _plain(x: Any) -> Any:
    if not isinstance(x, float) or math.isfinite(x):
        return x
    return None if x != x else "Infinity" if x > 0 else "-Infinity"


def _short(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:60] + "…")
