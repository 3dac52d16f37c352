"""Logs that know their runs: ids, headers, what reads them, and what shows them."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import geodiag
from geodiag import Record
from geodiag.cli import main
from geodiag.errors import ArgumentError, MissingDependency
from geodiag.records.header import Header, command, labels, plain
from geodiag.report.watch import Tail

H, W, NEW = np.diag([18.0, 4.0]), {"x": np.ones(2)}, {"x": np.full(2, 0.5)}
SUFFIXES = pytest.mark.parametrize("suffix", [".jsonl", ".csv"])


def run(log, steps=(0, 1), lr=0.1, **options) -> str:
    with geodiag.Monitor(H, lr=lr, every=1, log=log, **options) as monitor:
        for step in steps:
            monitor.observe(step, W, NEW)
    return monitor.run


@SUFFIXES
def test_a_log_that_exists_gets_another_run(tmp_path, suffix):
    log = tmp_path / f"run{suffix}"
    ids = [run(log, lr=lr, seed=seed) for lr, seed in ((0.1, 3), (0.05, 4))]
    records = geodiag.read_records(log)
    assert [r.run for r in records] == [ids[0]] * 2 + [ids[1]] * 2
    assert all(type(r) is Record for r in records)
    runs = geodiag.read_runs(log)
    assert [r.id for r in runs] == ids
    assert [[r.step for r in run] for run in runs] == [[0, 1], [0, 1]]
    header = runs[1].header
    assert header["norm"] == "L2()"
    assert header["optimizer"] == {"lr": 0.05}
    assert (header["seed"], header["parameters"]) == (4, 2)
    assert header["versions"]["numpy"] == np.__version__
    assert header["command"].startswith(Path(sys.argv[0]).name)
    assert "HOME" not in json.dumps(header)
    assert [r.step for r in geodiag.read_runs(log)[0]] == [0, 1]
    assert run(log, mode="w") not in ids
    assert len(geodiag.read_runs(log)) == 1


@SUFFIXES
def test_a_run_that_records_nothing_leaves_the_log_alone(tmp_path, suffix):
    log = tmp_path / f"run{suffix}"
    run(log)
    before = log.read_bytes()
    run(log, steps=(), mode="w")
    assert log.read_bytes() == before


@pytest.mark.parametrize("mode", ["x", "", None, 1])
def test_an_unknown_mode_is_refused_before_a_file_is_made(tmp_path, mode):
    for make in (
        lambda log: geodiag.Monitor(H, lr=0.1, log=log, mode=mode),
        lambda log: geodiag.sinks.JSONL(log, mode=mode),
    ):
        with pytest.raises(ArgumentError, match="mode= must be"):
            make(tmp_path / "a.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_goes_on_under_its_id(tmp_path):
    log = tmp_path / "run.jsonl"
    first = geodiag.Monitor(H, lr=0.1, every=1, log=log)
    first.observe(0, W, NEW)
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    with geodiag.Monitor(H, lr=0.1, every=1, log=log) as again:
        again.load_state_dict(state)
        again.observe(1, W, NEW)
    (only,) = geodiag.read_runs(log)
    assert [r.step for r in only] == [0, 1]
    assert only.id == first.run


def test_a_log_that_is_deleted_begins_with_its_header_again(tmp_path):
    log = tmp_path / "run.jsonl"
    with geodiag.Monitor(H, lr=0.1, every=1, log=log) as monitor:
        monitor.observe(0, W, NEW)
        log.unlink()
        monitor.observe(1, W, NEW)
    (only,) = geodiag.read_runs(log)
    assert only.header["norm"] == "L2()"


def test_runs_that_write_at_once_are_told_apart(tmp_path):
    logs = [str(tmp_path / "run.jsonl"), str(tmp_path / "run.csv")]
    code = (
        "import numpy as np, geodiag\n"
        f"with geodiag.Monitor(np.eye(2), lr=0.1, every=1, log={logs}) as m:\n"
        "    for step in range(40): m.observe(step, {'x': np.ones(2)}, {'x': np.zeros(2)})\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    for log in logs:
        runs = geodiag.read_runs(log)
        assert [[r.step for r in each] for each in runs] == [list(range(40))] * 3
        assert all(each.header["norm"] == "L2()" for each in runs)


def test_logs_of_older_versions_are_one_run(tmp_path):
    log = tmp_path / "old.jsonl"
    log.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 0.5}\n')
    (only,) = geodiag.read_runs(log)
    assert (only.id, only.header, len(only)) == ("", {}, 2)


@pytest.mark.parametrize(
    "line",
    ['{"run": 3, "header": {}}', '{"run": "a", "header": []}', '{"header": {}}', '{"run": "a"}'],
)
def test_what_is_no_header_is_left_out_with_a_warning(tmp_path, line):
    log = tmp_path / "run.jsonl"
    log.write_text(line + '\n{"step": 1, "run": "a"}\n')
    with pytest.warns(RuntimeWarning, match="line 1 is left out"):
        (only,) = geodiag.read_runs(log)
    assert (only.id, only.header) == ("a", {})


HOSTILE = "\x1b[2J</title><script>$x^$\x85\u2028,\"'=1+1\ud800\n" + "y" * 5000


@SUFFIXES
def test_hostile_texts_of_a_header_stay_text(tmp_path, suffix, monkeypatch, capsys):
    log = tmp_path / f"run{suffix}"
    monkeypatch.setattr(sys, "argv", ["/x/train.py", HOSTILE])
    monkeypatch.setattr(type(geodiag.problem(H)), "describe", lambda self: {"model": HOSTILE})
    for seed in (0, 1):
        run(log, seed=seed)
    raw = log.read_bytes()
    assert not set(raw) & {*range(10), *range(11, 32), 0x7F}
    text = " ".join(plain(HOSTILE).split()) if suffix == ".csv" else plain(HOSTILE)
    assert geodiag.read_runs(log)[0].header["model"].startswith(text[:20])
    named = tmp_path / f"label{suffix}"
    sink = {".jsonl": geodiag.sinks.JSONL, ".csv": geodiag.sinks.CSV}[suffix](named)
    for id in ("a", "b"):
        sink.start(Header(id, {"label": HOSTILE}))
        sink.write(Record(0, loss=1.0, ratio=0.5, run=id))
    sink.close()
    geodiag.plot(named, tmp_path / "page.html")
    assert "<script>$x" not in (tmp_path / "page.html").read_text("utf-8")
    assert main(["watch", "--once", str(named)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_command_has_no_secrets_and_no_folders():
    given = [
        "/home/me/train.py",
        "--api-key",
        "k1",
        "--token=k2",
        "https://me:k3@host/x",
        "--lr",
        "1",
    ]
    assert command(given) == "train.py --api-key … --token=… 'https://…@host/x' --lr 1"


def test_what_is_no_plain_value_is_bounded_text():
    deep: list = []
    for _ in range(1000):
        deep = [deep]

    class Broken:
        def __str__(self):
            raise SystemError("broken")

    values = {"a": deep, "b": Broken(), "c": float("nan"), "d": 10**400, "e": {1: object}}
    assert len(json.dumps(plain(values), allow_nan=False)) < 5000


def test_a_plot_has_a_line_for_each_run_of_a_log(tmp_path):
    log = tmp_path / "demo.jsonl"
    for lr in (0.1, 0.05):
        run(log, lr=lr)
    figure = geodiag.plot(log)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "L2(), lr=0.1",
        "L2(), lr=0.05",
    ]
    other = tmp_path / "one.jsonl"
    run(other)
    both = [t.get_text() for t in geodiag.plot([log, other]).legends[0].get_texts()]
    assert both == ["demo: L2(), lr=0.1", "demo: L2(), lr=0.05", "one"]
    in_memory = geodiag.plot(geodiag.read_records(log))
    assert len(in_memory.legends[0].get_texts()) == 2


def test_labels_are_told_apart():
    found = [Header("1", {"label": "a"}), Header("2", {"label": "a"}), Header("3", {"label": "b"})]
    assert labels(found) == ["a (1)", "a (2)", "b"]
    assert labels([Header("1"), Header("2")]) == ["1", "2"]


def test_a_tail_knows_the_headers(tmp_path):
    log = tmp_path / "run.jsonl"
    tail = Tail(log)
    id = run(log)
    assert tail.update()
    assert [r.step for r in tail.records] == [0, 1]
    assert tail.headers[id].label == "L2()"


def test_tables(tmp_path, monkeypatch):
    log = tmp_path / "run.csv"
    run(log)
    tables = types.SimpleNamespace(DataFrame=lambda columns, **options: columns)
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, tables)
        convert = getattr(geodiag, f"to_{name}")
        records = [Record(0, run="a"), Record(1, extras={"x": 2.0})]
        assert convert(log)["step"] == convert(geodiag.read_runs(log)[0])["step"] == [0, 1]
        assert convert(records)["run"] == ["a", ""]
        assert convert(records)["x"] == [None, 2.0]
        with pytest.raises(ArgumentError, match="a table is of records"):
            convert([1])
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingDependency, match=f"pip install {name}"):
            convert(records)
