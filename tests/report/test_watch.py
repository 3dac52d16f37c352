"""The live view: it shows what a log holds, and follows it as it grows."""

from __future__ import annotations

import math
import sys

import pytest

from geodiag.cli import main
from geodiag.errors import ArgumentError, MissingDependency
from geodiag.records import Record, to_csv, to_json
from geodiag.report.watch import Tail, run, sparkline

pytest.importorskip("rich")


def lines(*records, to_line=to_json):
    return "".join(to_line(r) + "\n" for r in records)


def record(step, **fields):
    return Record(step=step, **{"sharpness": 3.0, "bound": "LOWER", "ratio": 0.5} | fields)


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def test_sparkline():
    """Eight bars for the eighths of the range; a dot where nothing is known."""
    assert sparkline([0.125, 0.25, 0.5, 0.875, 1.0], 1.0) == "▁▂▄▇█"
    assert sparkline([0.0, -1.0, math.nan, 2.0, math.inf], 1.0) == "▁▁·█·"
    assert sparkline([0.5, 1.0], 2.0) == "▂▄"
    assert sparkline([1e308, -1e308, 5e307], 1e308) == "█▁▄"


@pytest.mark.parametrize("to_line", [to_json, to_csv])
def test_a_log_is_followed_by_whole_lines(tmp_path, to_line):
    path = tmp_path / ("run.jsonl" if to_line is to_json else "run.csv")
    tail = Tail(path)
    assert not tail.update()  # not there yet
    path.write_text(lines(record(0), to_line=to_line))
    assert tail.update()
    assert not tail.update()
    more = lines(record(1, note="ℓ∞"), record(2), to_line=to_line).encode()
    for i in range(len(more)):  # however it comes
        with path.open("ab") as file:
            file.write(more[i : i + 1])
        tail.update()
    assert [r.step for r in tail.records] == [0, 1, 2]
    assert tail.records[1].note == "ℓ∞"


def test_of_a_long_log_the_last_records_are_kept(tmp_path, monkeypatch):
    """Read in pieces that end anywhere."""
    monkeypatch.setattr("geodiag.report.watch.CHUNK", 1000)
    path = tmp_path / "run.jsonl"
    path.write_text(lines(*map(record, range(50))))
    tail, sizes = Tail(path, kept=7), set()
    while tail.update():
        sizes.add(len(tail.records))
    assert [r.step for r in tail.records] == list(range(43, 50))
    assert max(sizes) == 7


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("ratio", [1e308, -1e308, math.inf])
def test_a_ratio_of_any_size_is_shown(tmp_path, capsys, monkeypatch, wide, ratio, once):
    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", stop)
    path = tmp_path / "run.jsonl"
    path.write_text(lines(record(3, ratio=ratio, sharpness=ratio, num_hvps=10**400)))
    assert main(["watch", str(path), *(["--once"] if once else [])]) == (0 if once else 130)
    assert "S/threshold" in capsys.readouterr().out


def test_a_log_that_is_replaced_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "run.jsonl"
    tail = Tail(path)
    path.write_text(lines(record(0), record(1)))
    tail.update()
    path.write_text(lines(record(7)))
    tail.update()
    assert [r.step for r in tail.records] == [7]
    path.unlink()
    tail.update()
    path.write_text("torn\n" + lines(record(8)))
    tail.update()
    assert tail.records[-1].step == 8


def test_once_shows_the_last_records(tmp_path, capsys, wide):
    path = tmp_path / "run.jsonl"
    found = [record(10 * i, loss=0.5 / (i + 1), ratio=0.1 * i) for i in range(10)]
    path.write_text(lines(*found, record(100, sharpness=math.nan, bound="", note="the loss: NaN")))
    assert main(["watch", str(path), "--once", "--lines", "4"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    steps = [row[0] for row in rows if row and row[0].isdigit()]
    assert steps == ["70", "80", "90", "100"]
    assert "the loss: NaN" in out
    assert "≥ 3" in out
    assert sparkline([*(0.1 * i for i in range(10)), 0.5], 1.0) in out
    assert "upper" not in out  # a column of nothing


def test_markup_in_a_note_is_text(tmp_path, capsys, wide):
    path = tmp_path / "run.jsonl"
    path.write_text(lines(record(0, note="[red]x[/nonsense]")))
    assert run(path, once=True) == 0
    assert "[red]x[/nonsense]" in capsys.readouterr().out


def test_once_without_a_log_says_so(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "no.jsonl"), "--once"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_it_waits_for_the_log_and_goes_on_until_interrupted(tmp_path, capsys, monkeypatch, wide):
    path, waits = tmp_path / "run.jsonl", []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            path.write_text(lines(record(3)))
        if len(waits) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert main(["watch", str(path), "--interval", "0.5"]) == 130
    out = capsys.readouterr().out
    assert waits == [0.5] * 4
    assert "≥ 3" in out


@pytest.mark.parametrize("wrong", [{"lines": 0}, {"interval": 0.0}, {"interval": math.nan}])
def test_wrong_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(ArgumentError):
        run(tmp_path / "run.jsonl", **wrong)


def test_a_missing_rich_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(MissingDependency, match=r"geodiag\[watch\]"):
        run(tmp_path / "run.jsonl", once=True)


def test_numbers_are_never_cut(tmp_path, capsys, monkeypatch):
    """In a narrow terminal columns give way, the costs first; the last note has its own line."""
    monkeypatch.setenv("COLUMNS", "54")
    path = tmp_path / "run.jsonl"
    many = {"loss": 0.12345678, "threshold": 12.3456, "num_hvps": 12345, "realized_edge": 0.98765}
    path.write_text(lines(record(0, note="first"), record(100000, note="the last", **many)))
    run(path, once=True)
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(text in out for text in ("0.1235", "12.35", "≥ 3", "0.9877", "0.5"))
    assert "HVPs" not in out
    assert "step 100000: the last" in out
    assert max(map(len, out.splitlines())) <= 54


def test_several_logs(tmp_path, capsys, monkeypatch, wide):
    monkeypatch.chdir(tmp_path)
    for name, first in (("a", 0), ("b", 50)):
        found = (record(first + i) for i in range(9))
        (tmp_path / f"{name}.jsonl").write_text(lines(*found))
    paths = [f"{name}.jsonl" for name in "ab"]
    assert main(["watch", *paths, "--once", "--lines", "4"]) == 0
    out = capsys.readouterr().out
    rows = [line.split()[0] for line in out.splitlines() if line.split()[:1]]
    assert [row for row in rows if row.isdigit()] == ["7", "8", "57", "58"]
    assert out.count("S/threshold ") == 4  # a heading and a trend of each
    assert all(path in out for path in paths)


def test_piped_each_new_record_is_a_line(tmp_path, capsys, monkeypatch):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    paths[0].write_text(lines(record(1), record(2, note="two\nlines")))
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        paths[1].write_text(lines(record(7)))
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert main(["watch", *map(str, paths)]) == 130
    told = [line.partition(":")[2].split(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert [x.partition(": S")[0].strip() for x in told] == ["step 1", "step 2", "step 7"]


def test_the_ratios_of_parts_have_their_names(tmp_path, capsys, wide):
    """Of Muon beside AdamW; neither is shown as the run's."""
    path = tmp_path / "run.jsonl"
    own = {"sharpness_adam": 9.0, "ratio_adam": 0.93, "sharpness_muon": 2.0, "ratio_muon": 0.27}
    kept = [Record(t, realized_edge=0.7, extras=own) for t in range(3)]
    path.write_text(lines(*kept), encoding="utf-8")
    assert run(path, once=True) == 0
    shown = capsys.readouterr().out
    rows = shown.splitlines()
    at = next(i for i, row in enumerate(rows) if "adam: S/threshold" in row)
    assert "S/threshold" not in rows[at].replace(": S/threshold", "")
    assert "0.93" in rows[at + 1]
    assert "adam: S/threshold ███ (█ is 1)" in shown
    assert "muon: S/threshold ▃▃▃ (█ is 1)" in shown
    assert "ratio_adam 0.93, ratio_muon 0.27" in str(kept[0])
