"""Logs of other versions: read as they are, and appended to without losing anything.

The logs of schema 0 were written by the version before schemas were numbered.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from geodiag.records import BUILT_IN, Record, read_records
from geodiag.sinks import CSV, JSONL

LOGS = Path(__file__).parent / "logs"
FORMATS = pytest.mark.parametrize("kind", [JSONL, CSV])
NEW = Record(9, loss=0.5, note="new", extras={"noise": 0.25, "phase": "late"})


@pytest.fixture
def old(tmp_path, kind):
    """A copy of the log that the old version wrote."""
    name = f"schema_0.{kind.__name__.lower()}"
    return Path(shutil.copy(LOGS / name, tmp_path / name))


def write(kind, path, *records):
    sink = kind(path)
    for record in records:
        sink.write(record)
    sink.close()


@FORMATS
def test_an_old_log_is_read(old, kind):
    """Compared with the file's text, by no code of the library."""
    if kind is JSONL:
        rows = [json.loads(line) for line in old.read_text("utf-8").splitlines()]
    else:
        with old.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    found = read_records(old)
    assert [r.step for r in found] == [0, 1, 2, 3]
    for record, row in zip(found, rows, strict=True):
        assert record.extras == {}
        assert list(row) == list(record.to_dict())[: len(row)]
        assert record.status == ""
        assert math.isnan(record.critical_lr)
        for name, text in row.items():
            value = getattr(record, name)
            if text is None or (text == "" and isinstance(value, float)):
                assert math.isnan(value)
            else:
                assert value == type(value)(text)
    assert [r.sharpness for r in found] == [5.5, 5.5, 5.5, 4.0]
    assert found[3].note == 'no threshold: it said "no", twice; the step is not finite'


@FORMATS
def test_new_records_are_appended_to_an_old_log(old, kind):
    """With a column that the log does not have; the old lines stay as they are."""
    text, before = old.read_text("utf-8"), read_records(old)
    if kind is CSV:
        with pytest.warns(
            RuntimeWarning, match="no column for realized_edge, .*noise, phase: a second header"
        ):
            write(CSV, old, NEW, replace(NEW, step=10))
    else:
        write(JSONL, old, NEW, replace(NEW, step=10))
    assert old.read_text("utf-8").startswith(text)
    assert old.read_text("utf-8").count("step,loss") == 2 * (kind is CSV)
    *first, new, last = read_records(old)
    assert list(map(str, first)) == list(map(str, before))
    assert str(new) == str(NEW)
    assert (last.step, last.noise, last.phase) == (10, 0.25, "late")


def test_rows_follow_the_columns_of_the_file(tmp_path, recwarn):
    """A log of a version that has more columns, in another order, gets no second header."""
    path = tmp_path / "run.csv"
    header = ",".join(["future", *reversed(BUILT_IN)])
    path.write_text(header + "\n")
    write(CSV, path, Record(1, loss=0.5, num_hvps=3))
    lines = path.read_text().splitlines()
    assert lines[0] == header
    assert len(lines) == 2
    assert dict(zip(header.split(","), lines[1].split(","), strict=True))["loss"] == "0.5"
    (record,) = read_records(path)
    assert (record.step, record.loss, record.num_hvps) == (1, 0.5, 3)
    assert math.isnan(record.future)
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:.*second header")
def test_runs_with_different_quantities_share_a_log(tmp_path):
    """In turn: after two headers, all columns are there, and each row has its own values."""
    path = tmp_path / "run.csv"
    runs = {name: CSV(path) for name in ("a", "b")}
    for step in range(6):
        name = "ab"[step % 2]
        runs[name].write(Record(step, loss=0.5, extras={name: float(step)}))
    assert path.read_text().count("step,loss") == 2
    for record in read_records(path):
        assert record.extras["ab"[record.step % 2]] == record.step
        assert record.loss == 0.5


def test_a_log_that_was_emptied_gets_its_header_again(tmp_path):
    path = tmp_path / "run.csv"
    sink = CSV(path)
    for _ in range(2):
        sink.write(Record(1, loss=0.5))
    os.truncate(path, 0)
    sink.write(Record(2, loss=0.5))
    sink.close()
    assert path.read_text().splitlines()[0] == ",".join(BUILT_IN)
    assert [r.step for r in read_records(path)] == [2]


@pytest.mark.filterwarnings("ignore:.*second header")
@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_second_header_that_was_cut_short_is_written_again(tmp_path, cut):
    path = tmp_path / "run.csv"
    write(CSV, path, Record(1, loss=0.5))
    second = ",".join([*BUILT_IN, "noise", "phase"])
    with path.open("a") as file:
        file.write(second[:-cut])
    write(CSV, path, NEW)
    with pytest.warns(RuntimeWarning, match="line 3 is left out"):
        found = read_records(path)
    assert [str(r) for r in found] == [str(Record(1, loss=0.5)), str(NEW)]


@pytest.mark.filterwarnings("ignore:.*second header")
def test_a_row_cut_short_below_a_wider_header(tmp_path):
    """It is ended by more commas than any header has columns, so it is like no row."""
    path = tmp_path / "run.csv"
    write(CSV, path, NEW, NEW)
    whole = path.read_text()
    last = len(whole.splitlines()[-1])
    for cut in range(2, last + 1):
        path.write_text(whole[:-cut])
        write(CSV, path, Record(11))
        with pytest.warns(RuntimeWarning, match="line 3 is left out"):
            assert [r.step for r in read_records(path)] == [9, 11]
