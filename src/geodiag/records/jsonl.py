r"""JSON lines: one strict JSON object a line, with the number of its schema.

NaN is null, infinity the text "Infinity" or "-Infinity". What UTF-8 does not have and codes that
control a terminal are escapes such as ``\u0085``, which read back as they were. Every line states
the schema, because several runs, also of different versions, may append to one file. A line without
it has schema 0; its fields are those of schema 1.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from geodiag.errors import ArgumentError
from geodiag.records.record import Record, record_of, shortened

SCHEMA = 1
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # those below 0x20 are, by JSON


def to_json(record: Record) -> str:
    """The record as one line, without the line's end.

    >>> to_json(Record(3, loss=0.5))[:52]
    '{"schema": 1, "step": 3, "loss": 0.5, "lr": null, "s'
    """
    plain = {name: _plain(x) for name, x in record.to_dict().items()}
    line = json.dumps({"schema": SCHEMA} | plain, allow_nan=False, ensure_ascii=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def from_json(line: str) -> Record:
    """The record of a line.

    A line of a later schema is read as far as its names and types are known.

    Raises:
        ArgumentError: the line is no JSON object, has no step, or a value of another type.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ArgumentError("a line of a log is not JSON", got=shortened(line)) from e
    if not isinstance(found, dict):
        raise ArgumentError("a line of a log is not a JSON object", got=shortened(line))
    schema = found.get("schema", 0)
    return record_of(found, line, newer=isinstance(schema, int) and schema > SCHEMA)


def _plain(x: Any) -> Any:
    if not isinstance(x, float) or math.isfinite(x):
        return x
    return None if x != x else "Infinity" if x > 0 else "-Infinity"
