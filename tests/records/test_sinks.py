"""Sinks: whole lines whatever happens, and trackers that receive every number that is known."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest

from geodiag.errors import ArgumentError, MissingDependency
from geodiag.records import BUILT_IN, Header, Record, read_records
from geodiag.sinks import CSV, JSONL, MLflow, Sink, TensorBoard, WandB, as_sinks, metrics

A = Record(step=0, loss=1.5, lr=0.1, sharpness=3.0, bound="LOWER", num_hvps=3, seconds=0.25)
B = Record(step=10, loss=math.nan, upper=math.inf, num_hvps=2, note="the loss: it is NaN")
# Written down by hand: what a chart can show of the two.
SHOWN_A = {"loss": 1.5, "lr": 0.1, "sharpness": 3.0, "num_hvps": 3, "seconds": 0.25}
SHOWN_B = {"num_hvps": 2}
HEADER = ",".join(BUILT_IN)
FILES = pytest.mark.parametrize("kind", [JSONL, CSV])


def prefixed(values, prefix="geodiag/"):
    return {prefix + name: x for name, x in values.items()}


def steps(path):
    return [r.step for r in read_records(path)]


class TestFiles:
    @FILES
    def test_each_record_is_there_at_once(self, kind, tmp_path):
        path = tmp_path / f"new/folder/run.{kind.__name__.lower()}"
        sink = kind(path, fsync=True)
        for n, record in enumerate((A, B), 1):
            sink.write(record)
            assert len(read_records(path)) == n
        sink.close()
        sink.close()
        assert steps(path) == [0, 10]
        with pytest.raises(ArgumentError, match="closed"):
            sink.write(A)

    @FILES
    def test_a_log_is_continued(self, kind, tmp_path):
        path = tmp_path / f"run.{kind.__name__.lower()}"
        for record in (A, B):
            sink = kind(path)
            sink.write(record)
            sink.close()
        assert steps(path) == [0, 10]
        assert path.read_text().count(HEADER) == (kind is CSV)

    @FILES
    def test_a_line_cut_short_does_not_spoil_the_next(self, kind, tmp_path):
        path = tmp_path / f"run.{kind.__name__.lower()}"
        sink = kind(path)
        sink.write(A)
        sink.close()
        os.truncate(path, path.stat().st_size - 4)
        sink = kind(path)
        sink.write(B)
        sink.close()
        with pytest.warns(RuntimeWarning, match="left out"):
            assert steps(path) == [10]

    @FILES
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_a_full_disk_is_an_error_of_that_record(self, kind):
        sink = kind("/dev/full")
        with pytest.raises(OSError, match="No space") as caught:
            sink.write(A)
        assert caught.value.errno == errno.ENOSPC
        sink.close()

    @FILES
    def test_a_short_write_is_noticed_and_the_next_line_whole(self, kind, tmp_path, monkeypatch):
        path = tmp_path / f"run.{kind.__name__.lower()}"
        sink, write = kind(path), os.write
        sink.write(A)
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:9]))
        with pytest.raises(OSError, match="9 of"):
            sink.write(A)
        monkeypatch.undo()
        sink.write(B)
        sink.close()
        with pytest.warns(RuntimeWarning, match="left out"):
            assert steps(path) == [0, 10]

    @FILES
    def test_a_killed_run_leaves_whole_lines(self, kind, tmp_path):
        path = tmp_path / f"run.{kind.__name__.lower()}"
        runs = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "ab"]
        until = time.monotonic() + 300
        while not (path.exists() and path.stat().st_size > 100_000) and time.monotonic() < until:
            time.sleep(0.01)
        for run in runs:
            run.send_signal(signal.SIGKILL)
            run.wait()
        found = read_records(path)  # a torn line would warn, and warnings are errors here
        assert len(found) > 100
        for name in "ab":  # and of each run they are all there, in order
            own = [r.step for r in found if r.note.startswith(name)]
            assert own == list(range(len(own)))

    def test_a_path_that_cannot_be_opened_says_so(self, tmp_path):
        with pytest.raises(ArgumentError, match="cannot be opened"):
            JSONL(tmp_path)


WRITER = """
import sys
from geodiag.records import Record
from geodiag.sinks import as_sinks
(sink,) = as_sinks(sys.argv[1])
for step in range(10**9):
    sink.write(Record(step, loss=0.1, note=sys.argv[2] * 200))
"""


class TestLog:
    def test_every_form_of_log(self, tmp_path):
        seen = []

        class Own(Sink):
            def write(self, record):
                seen.append(("own", record.step))

        own = Own()
        log = [str(tmp_path / "a.jsonl"), tmp_path / "b.CSV", own, lambda r: seen.append(r.step)]
        found = as_sinks(log)
        for sink in found:
            sink.write(A)
            sink.close()
        assert [type(s).__name__ for s in found] == ["JSONL", "CSV", "Own", "Call"]
        assert seen == [("own", 0), 0]
        assert as_sinks(None) == []

    @pytest.mark.parametrize("log", ["run.txt", "run", 3, JSONL, [["run.txt"]], {"a": 1}])
    def test_another_form_is_refused(self, log):
        with pytest.raises(ArgumentError, match="log="):
            as_sinks(log)

    @pytest.mark.parametrize("name", ["run.jsonl", "run.csv"])
    def test_a_log_that_a_monitor_still_writes_to_is_said(self, name, tmp_path):
        """As where a notebook's cell is run twice: each record would be there twice."""
        (first,), link = as_sinks(tmp_path / name), tmp_path / f"link-{name}"
        link.symlink_to(tmp_path / name)
        for again in (tmp_path / name, str(link)):
            with pytest.warns(RuntimeWarning, match="is already the log of a monitor"):
                (second,) = as_sinks(again)
            second.close()
        first.close()
        for _ in range(2):
            (again,) = as_sinks(tmp_path / name)  # a warning would be an error here
            again.close()

    def test_what_was_opened_is_closed_when_a_later_one_fails(self, tmp_path):
        closed = []

        class Own(Sink):
            def write(self, record): ...

            def close(self):
                closed.append(1)

        with pytest.raises(ArgumentError):
            as_sinks([Own(), tmp_path / "run.txt"])
        assert closed == [1]


def test_metrics_are_the_finite_numbers():
    assert metrics(A) == prefixed(SHOWN_A)
    assert metrics(B, "x.") == prefixed(SHOWN_B, "x.")


@pytest.mark.parametrize(
    ("package", "sink"), [("tensorboard", TensorBoard), ("wandb", WandB), ("mlflow", MLflow)]
)
def test_a_missing_package_names_the_extra(package, sink, monkeypatch, tmp_path):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # so it cannot be imported
    with pytest.raises(MissingDependency, match=r"geodiag\[sinks\]"):
        sink(tmp_path) if sink is TensorBoard else sink()


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    sink = TensorBoard(tmp_path, prefix="edge/")
    sink.start(Header("3f2a", {"norm": "L2()", "optimizer": {"lr": 0.1}}))
    for record in (A, B):
        sink.write(record)
        assert sink.flush(60)
        events = EventAccumulator(str(tmp_path))
        events.Reload()  # each is flushed: TensorBoard sees it while the run goes on
        assert events.Scalars("edge/num_hvps")[-1].step == record.step
    sink.close()
    assert set(events.Tags()["scalars"]) == set(prefixed(SHOWN_A, "edge/"))
    for name, value in prefixed(SHOWN_A, "edge/").items():
        first = events.Scalars(name)[0]
        assert first.step == 0
        assert first.value == pytest.approx(value, rel=2**-23)  # the format holds float32
    assert len(events.Scalars("edge/loss")) == 1
    (run,) = events.Tensors("edge/run")
    (text,) = run.tensor_proto.string_val
    assert text.split() == b"run: 3f2a norm: L2() optimizer.lr: 0.1".split()
    (layout,) = events.Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0]).category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert charts["S / threshold, ζ"] == ["^edge/ratio$", "^edge/realized_edge$"]
    assert "^edge/loss$" in charts["loss"]
    (note,) = events.Tensors("edge/note")
    assert (note.step, note.tensor_proto.string_val) == (10, [B.note.encode()])


OFFLINE = """
import sys
from geodiag.records import Record
from geodiag.sinks import WandB
sink = WandB(mode="offline", project="edge", dir=".")
sink.write(Record(0, loss=1.5, sharpness=3.0))
sink.write(Record(10, note="it is NaN"))
sink.close()
"""


def test_wandb_offline_holds_the_records(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    env = os.environ | {"WANDB_SILENT": "true"}
    subprocess.run([sys.executable, "-c", OFFLINE], cwd=tmp_path, env=env, check=True, timeout=600)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history = []
    for payload in _leveldb_log(file.read_bytes()[7:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        if record.HasField("history"):
            items = record.history.item
            found = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            history.append({k: x for k, x in found.items() if k.startswith("geodiag/")})
    assert history == [
        prefixed({"step": 0, "loss": 1.5, "sharpness": 3.0, "num_hvps": 0}),
        prefixed({"step": 10, "num_hvps": 0, "note": "it is NaN"}),
    ]


def _leveldb_log(data: bytes):
    """The records of a LevelDB log that are in one piece: (checksum, length, type), payload."""
    at = 0
    while at + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 1:
            yield data[at + 7 : at + 7 + length]
        at += 7 + length


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database is not needed here
    package = pytest.importorskip("mlflow")
    before = package.get_tracking_uri()
    package.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield package
    package.set_tracking_uri(before)


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")
class TestMLflow:
    def test_a_run_of_its_own(self, mlflow):
        sink = MLflow()
        run_id = mlflow.active_run().info.run_id
        for record in (A, B):
            sink.write(record)
        sink.close()
        sink.close()
        assert mlflow.active_run() is None
        self.check(mlflow, run_id)

    def test_the_users_run_goes_on(self, mlflow):
        with mlflow.start_run() as run:
            sink = MLflow()
            sink.write(A)
            sink.close()
            assert mlflow.active_run().info.run_id == run.info.run_id
        other = MLflow(run.info.run_id)
        other.write(B)
        other.close()
        self.check(mlflow, run.info.run_id)

    def test_the_header_is_parameters_and_what_changed_of_a_resumed_run_a_tag(self, mlflow):
        run = mlflow.start_run()
        mlflow.end_run()
        for lr in (0.1, 0.2):
            sink = MLflow(run.info.run_id)
            sink.start(Header("3f2a", {"norm": "L2()", "optimizer": {"lr": lr}}))
            sink.write(A)
            sink.close()
        data = mlflow.MlflowClient().get_run(run.info.run_id).data
        expected = {"run": "3f2a", "norm": "L2()", "optimizer.lr": "0.1"}
        assert data.params == prefixed(expected)
        assert data.tags["geodiag/optimizer.lr"] == "0.2"
        assert "geodiag/norm" not in data.tags

    def check(self, mlflow, run_id):
        client = mlflow.MlflowClient()
        found = {
            name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)]
            for name in client.get_run(run_id).data.metrics
        }
        expected = {name: [(0, x)] for name, x in prefixed(SHOWN_A).items()}
        expected["geodiag/num_hvps"] = [(0, 3), (10, 2)]
        assert found == expected
        assert B.note in client.get_run(run_id).data.tags["geodiag/note"]


def test_no_sink_loads_a_package_before_it_is_built(monkeypatch):
    code = "import sys, geodiag, geodiag.sinks\nprint(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(chain(done.stdout.split()))
    assert not loaded & {"tensorboard", "wandb", "mlflow", "matplotlib", "rich"}
