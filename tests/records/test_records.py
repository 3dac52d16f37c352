"""Records: a line says all of a record, and a file gives back every whole line of it."""

from __future__ import annotations

import copy
import json
import math
import pickle
import tracemalloc
import warnings
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import geodiag
from geodiag.errors import ArgumentError
from geodiag.records import BUILT_IN, Record, from_json, read_records, to_csv, to_json
from geodiag.records.csv_format import Rows, from_header
from geodiag.records.jsonl import SCHEMA

HEADER = ",".join(BUILT_IN)
FULL = Record(
    step=30,
    loss=0.1 + 0.2,  # not a short decimal
    lr=1e-300,
    sharpness=-5.0,
    bound="EXACT",
    upper=math.inf,
    dual_norm=-math.inf,
    directional_smoothness=1e22,
    curvature=0.0,
    threshold=20.0,
    ratio=0.25,
    realized_edge=-0.5,
    occupation=0.125,
    timing=1e-7,
    critical_lr=0.125,
    critical_lr_error=0.0625,
    num_hvps=12,
    seconds=0.5,
    note='a "quoted", spaced ℓ∞ note',
)
reproducible = settings(deadline=None, derandomize=True, database=None)
numbers = st.floats(allow_nan=True, allow_infinity=True)
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
records = st.builds(
    Record,
    step=st.integers(),
    loss=numbers,
    sharpness=numbers,
    bound=st.sampled_from(["EXACT", "LOWER", ""]),
    ratio=numbers,
    num_hvps=st.integers(min_value=0),
    note=text,
    extras=st.dictionaries(
        st.sampled_from(["noise", "x", "Größe"]), numbers | st.sampled_from(["up", "a b", "1 %"])
    ),
)


def same(a: Record, b: Record) -> bool:
    """Equality in which NaN equals NaN."""
    one, other = a.to_dict(), b.to_dict()
    pairs = zip(one.values(), other.values(), strict=True)
    return list(one) == list(other) and all(x == y or (x != x and y != y) for x, y in pairs)


# The promised fields, written down apart from the code.
PROMISED = (
    "step, loss, lr, sharpness, bound, upper, dual_norm, directional_smoothness, curvature, "
    "threshold, ratio, num_hvps, seconds, note, realized_edge, occupation, timing, status, "
    "run, critical_lr, critical_lr_error"
)


def test_fields_are_the_promised_ones():
    assert ", ".join(f.name for f in fields(geodiag.Record)) == f"{PROMISED}, extras"
    assert ", ".join(BUILT_IN) == PROMISED


@reproducible
@given(records)
def test_a_line_of_json_is_strict_and_gives_the_record_back(record):
    line = to_json(record)
    assert "\n" not in line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    assert same(from_json(line), record)


@reproducible
@given(records)
def test_a_row_of_csv_gives_the_record_back(record):
    read, columns = Rows(), list(record.to_dict())
    line = to_csv(record, columns)
    assert "\n" not in line
    assert "\r" not in line
    assert read(",".join(columns)) is None
    assert same(read(line), replace(record, note=" ".join(record.note.split())))


def test_what_is_written():
    nothing = Record(step=3)
    assert json.loads(to_json(nothing))["sharpness"] is None
    assert json.loads(to_json(nothing))["schema"] == SCHEMA == 1
    assert json.loads(to_json(FULL))["upper"] == "Infinity"
    assert to_csv(nothing) == "3,,,,,,,,,,,0,,,,,,,,,"
    assert f"{HEADER},extras".split(",") == [f.name for f in fields(Record)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
class TestFiles:
    def lines(self, suffix):
        if suffix == ".csv":
            return [HEADER, to_csv(FULL), to_csv(Record(step=40, note="x"))]
        return [to_json(FULL), to_json(Record(step=40, note="x"))]

    def test_a_log_is_read(self, tmp_path, suffix):
        path = tmp_path / f"run{suffix}"
        path.write_text("\n".join(self.lines(suffix)) + "\n", "utf-8")
        first, second = geodiag.read_records(str(path))
        assert same(first, FULL)
        assert (second.step, second.note) == (40, "x")
        assert math.isnan(second.loss)

    def test_every_torn_end_is_left_out_with_a_warning(self, tmp_path, suffix):
        """Whatever byte the crash came at, the whole lines are there, and no half record is."""
        path = tmp_path / f"run{suffix}"
        whole = ("\n".join(self.lines(suffix)) + "\n").encode()
        last = len(whole) - len(whole.rstrip(b"\n").rpartition(b"\n")[2]) - 1
        for cut in range(last + 1, len(whole) - 1):
            path.write_bytes(whole[:cut])
            with pytest.warns(RuntimeWarning, match="is left out"):
                (only,) = read_records(path)
            assert same(only, FULL)

    def test_a_line_torn_long_ago_is_left_out_too(self, tmp_path, suffix):
        path = tmp_path / f"run{suffix}"
        *head, last = self.lines(suffix)
        path.write_text("\n".join([*head, last[:5], last]) + "\n", "utf-8")
        with pytest.warns(RuntimeWarning, match=f"line {len(head) + 1} is left out"):
            assert [r.step for r in read_records(path)] == [30, 40]

    def test_an_empty_log_is_no_error(self, tmp_path, suffix):
        path = tmp_path / f"run{suffix}"
        path.write_text("")
        assert read_records(path) == []

    @pytest.mark.parametrize("content", [b"hello\n", b"\xff\xfe\n", b"[1]\n", b"{}\n", b"1,2\n"])
    def test_another_file_is_refused(self, tmp_path, suffix, content):
        path = tmp_path / f"run{suffix}"
        path.write_bytes(content)
        with pytest.raises(ArgumentError, match="not a log"):
            read_records(path)


def test_line_ends_of_windows_and_repeated_headers_do_no_harm(tmp_path):
    path = tmp_path / "run.csv"
    row = to_csv(FULL)
    path.write_bytes("\r\n".join([HEADER, row, HEADER, "", row, ""]).encode())
    assert [r.step for r in read_records(path)] == [30, 30]


def test_a_whole_last_line_needs_no_end(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text(to_json(FULL), "utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (only,) = read_records(path)
    assert same(only, FULL)


def test_a_log_is_read_line_by_line(tmp_path):
    """Its text, 20 MB here, is never in memory as a whole."""
    path = tmp_path / "run.jsonl"
    line = to_json(FULL)[:-1] + ', "unknown": ["' + "x" * 100_000 + '"]}\n'
    path.write_text(line * 200, "utf-8")
    tracemalloc.start()
    try:
        assert len(read_records(path)) == 200
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_unknown_keys_are_extras_and_missing_ones_unknown():
    line = '{"step": 7, "sharpness": 2, "method": "descent", "n": 3, "s": {"a": 1}, "t": true}'
    record = from_json(line)
    assert same(record, Record(step=7, sharpness=2.0, extras={"method": "descent", "n": 3.0}))
    assert isinstance(record.sharpness, float)
    assert isinstance(record.n, float)
    assert math.isnan(record.loss)


def test_a_line_of_a_later_schema_is_read_as_far_as_it_is_known():
    later = f'{{"schema": {SCHEMA + 1}, "step": 7, "loss": [1.0], "lr": 0.5, "new": 2.0}}'
    assert same(from_json(later), Record(7, lr=0.5, extras={"new": 2.0}))
    with pytest.raises(ArgumentError, match="another type"):
        from_json(later.replace(str(SCHEMA + 1), str(SCHEMA), 1))
    with pytest.raises(ArgumentError, match="another type"):
        from_json(later.replace("7", '"seven"'))


class TestExtras:
    """What a plugin or another version has added to a record."""

    def test_are_read_like_fields(self):
        record = Record(1, extras={"noise": 0.5})
        assert record.noise == 0.5
        assert list(record.to_dict()) == [*BUILT_IN, "noise"]
        with pytest.raises(AttributeError, match="no field or extra 'nois'"):
            record.nois  # noqa: B018

    def test_survive_copies(self):
        record = replace(FULL, extras={"noise": 0.5})
        for again in (pickle.loads(pickle.dumps(record)), copy.deepcopy(record), replace(record)):
            assert again == record
            assert again.noise == 0.5
            assert hash(again) == hash(record)
        assert record != FULL
        assert "noise" in repr(record)
        assert asdict(record)["extras"] == {"noise": 0.5}

    def test_cannot_stand_in_for_methods(self):
        """A log can hold any name; those that are no identifiers have no place in CSV."""
        names = ("__array__", "_repr_html_", "to_dict", "extras", "schema", "a b", "", "a\nb")
        record = from_json(json.dumps({"step": 1, "x": 2.0} | dict.fromkeys(names, 1.0)))
        assert record.extras == {"x": 2.0}
        assert callable(record._repr_html_)
        for name in (*names, "loss", 3):
            with pytest.raises(ArgumentError, match="unusable name"):
                Record(1, extras={name: 1.0})

    def test_of_hostile_numbers(self):
        record = from_json('{"step": 1, "a": ' + "9" * 400 + ', "b": 1e999, "schema": 0}')
        assert record.extras == {"b": math.inf}


class TestHeaders:
    """The header of a CSV log rules, whatever this version's own columns are."""

    def read(self, *lines):
        read = Rows()
        return [r for r in map(read, lines) if r is not None]

    def test_columns_are_found_by_name(self):
        (record,) = self.read("noise,note,step,loss", "0.25,hello,3,0.5")
        assert same(record, Record(3, loss=0.5, note="hello", extras={"noise": 0.25}))

    def test_a_later_header_holds_for_the_rows_that_follow(self):
        found = self.read("step,loss", "1,0.5", "step,loss,noise", "2,0.4,0.1", "3,0.3,")
        assert [(r.step, r.loss) for r in found] == [(1, 0.5), (2, 0.4), (3, 0.3)]
        assert found[0].extras == {}
        assert found[1].extras == {"noise": 0.1}
        assert math.isnan(found[2].noise)

    def test_a_row_belongs_to_the_header_of_its_width(self):
        """As where two runs write at the same moment, one of which knows more columns."""
        found = self.read("step,loss", "step,loss,noise", "1,0.5", "2,0.4,0.1")
        assert [r.extras for r in found] == [{}, {"noise": 0.1}]

    def test_a_row_of_another_width_is_refused(self):
        with pytest.raises(ArgumentError, match="2 or 21 columns"):
            self.read("step,loss", "1,0.5,3")

    @pytest.mark.parametrize("row", ["3,,,,,,,,,,,0,,step", "step,los,,,,", "1,step", ""])
    def test_a_row_is_no_header(self, row):
        assert from_header(row) == ()


@pytest.mark.parametrize(
    "line",
    [
        '{"loss": 1.0}',
        '{"step": 1.5}',
        '{"step": true}',
        '{"step": null}',
        '{"step": 1, "loss": true}',
        '{"step": 1, "loss": [1]}',
        '{"step": 1, "note": 3}',
        '{"step": 1, "bound": "UPPER"}',
        '{"step": 1, "loss": "__import__(\'os\')"}',
        "[" * 100_000,
    ],
)
def test_values_of_another_type_are_refused(line):
    with pytest.raises(ArgumentError):
        from_json(line)


@pytest.mark.parametrize("path", ["missing.jsonl", "."], ids=["missing", "folder"])
def test_a_path_that_cannot_be_read_says_so(tmp_path, path):
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_records(tmp_path / path)
