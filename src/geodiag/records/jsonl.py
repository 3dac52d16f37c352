r"""JSON lines: one strict JSON object a line, with the number of its schema.

NaN is null, infinity the text "Infinity" or "-Infinity". What UTF-8 does not have and codes that
control a terminal are escapes such as ``\u0085``, which read back as they were. Every line states
the schema, because several runs, also of different versions, may append to one file. A line without
it has schema 0; its fields are those of schema 1. Before the first record of a run there is a line
without a step, with what is known of the run:
``{"schema": 1, "run": "3f2a…", "header": {"norm": …}}``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from geodiag.errors import ArgumentError
from geodiag.records.header import Header, text_of
from geodiag.records.record import Record, record_of, shortened

SCHEMA = 1
_BETWEEN = re.compile(r"\}\s*,\s*\{")
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # those below 0x20 are, by JSON


def to_json(record: Record) -> str:
    """The record as one line, without the line's end.

    >>> to_json(Record(3, loss=0.5))[:52]
    '{"schema": 1, "step": 3, "loss": 0.5, "lr": null, "s'
    """
    plain = {name: _plain(x) for name, x in record.to_dict().items()}
    line = json.dumps({"schema": SCHEMA} | plain, allow_nan=False, ensure_ascii=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def header_to_json(header: Header) -> str:
    """The header as one line, without the line's end."""
    run = json.dumps(header.run)
    return f'{{"schema": {SCHEMA}, "run": {run}, "header": {text_of(header)}}}'


def from_json(line: str) -> Record | Header:
    """The record of a line, or the header of a run.

    A line of a later schema is read as far as its names and types are known.

    Raises:
        ArgumentError: the line is no JSON object, has no step, or a value of another type.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ArgumentError("a line of a log is not JSON", got=shortened(line)) from e
    return from_object(found, line)


def objects(lines: Sequence[str]) -> list[Any] | None:
    """The JSON object of each line, decoded together, which takes two thirds of the time.

    None where a line is something else. Between n objects are n − 1 commas: if there are no others
    between braces, they are those between the lines.
    """
    if not all(line[:1] == "{" and line[-1:] == "}" for line in lines):
        return None
    text = ",".join(lines)
    if len(_BETWEEN.findall(text)) != len(lines) - 1:
        return None
    try:
        found: list[Any] = json.loads(f"[{text}]")
    except (ValueError, RecursionError):
        return None
    return found if len(found) == len(lines) else None


def from_object(found: Any, line: str) -> Record | Header:
    """What the decoded JSON of a line says; see :func:`from_json`."""
    if not isinstance(found, dict):
        raise ArgumentError("a line of a log is not a JSON object", got=shortened(line))
    if "header" in found and "step" not in found:
        return header_of(found.get("run"), found["header"], line)
    schema = found.get("schema", 0)
    return record_of(found, line, newer=isinstance(schema, int) and schema > SCHEMA)


def header_of(run: Any, values: Any, line: str) -> Header:
    """The header of a run, where it is one.

    Raises:
        ArgumentError: the run's id is no text, or the values are no JSON object.
    """
    if not isinstance(run, str) or not run or not isinstance(values, dict):
        raise ArgumentError("a line of a log is no header of a run", got=shortened(line))
    return Header(run, values)


def _plain(x: Any) -> Any:
    if not isinstance(x, float) or math.isfinite(x):
        return x
    return None if x != x else "Infinity" if x > 0 else "-Infinity"
