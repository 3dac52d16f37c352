"""Beside a training that logs to the same run of W&B: no row of the training's is lost.

Run is what W&B does, written down by hand; the last test compares it with the package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from geodiag.records import Header, Record
from geodiag.sinks import WandB, wandb_rows
from tests.records.test_sinks import SHOWN_A, SHOWN_B, A, B, _leveldb_log, prefixed

pytest.importorskip("wandb")


class Config(dict):
    """As W&B's: a value is only changed where that is allowed."""

    def update(self, values, allow_val_change=False):
        assert allow_val_change or not [k for k in values if k in self and self[k] != values[k]]
        super().update(values)


class Run:
    """A run of W&B: rows in their order, the last of which is open."""

    def __init__(self):
        self.rows, self.open, self.step, self.lost = [], {}, 0, []
        self.defined, self.finished, self.config = [], False, Config()
        self._telemetry_obj = SimpleNamespace(feature=SimpleNamespace(set_step_log=False))

    def define_metric(self, name, step_metric=None, summary=None):
        self.defined.append((name, step_metric, summary))

    def log(self, values, step=None, commit=None):
        assert not self.finished
        if step is not None:
            self._telemetry_obj.feature.set_step_log = True
            if step < self.step:
                self.lost.append(values)
                return
            if step > self.step:
                self._close(step)
        self.open |= values
        if commit or (commit is None and step is None):
            self._close(self.step + 1)

    def finish(self):
        self._close(self.step + 1)
        self.finished = True

    def _close(self, step):
        if self.open:
            self.rows.append(self.open)
        self.open, self.step = {}, step

    def values(self, name):
        return [row[name] for row in [*self.rows, self.open] if name in row]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A record is placed before the training goes on, however slow the machine is."""
    monkeypatch.setattr(wandb_rows, "ROW_WAIT", 60.0)


# How the training counts what it logs at each so many steps.
SAME, SLOW, FAST = (lambda t: t), (lambda t: t // 20), (lambda t: 32 * t)
COUNTS = {"same": SAME, "slow": SLOW, "fast": FAST}


def train(run, names, every, logs_every, count, before):
    """100 steps; returns the training's values, and the warnings of the sinks at their end."""
    sinks = [WandB(run, prefix=f"geodiag/{name}/") for name in names]

    def log(t):
        if logs_every and t % logs_every == logs_every - 1:
            logged.append(t)
            run.log({"loss": t}, **({} if count is None else {"step": count(t)}))

    def measure(t):
        if t % every == 0:
            for sink in sinks:
                sink.write(Record(t, loss=float(t)))

    logged = []
    for t in range(100):
        for part in (log, measure) if before else (measure, log):
            part(t)
    for sink in sinks:
        sink.close()
    run.finish()
    return logged


@pytest.mark.filterwarnings("ignore:WandB.. dropped")
@pytest.mark.parametrize("before", [True, False], ids=["logs first", "measures first"])
@pytest.mark.parametrize("names", [["l2"], ["l2", "linf"]], ids=len)
@pytest.mark.parametrize("logs_every", [1, 10, 20])
@pytest.mark.parametrize("every", [1, 5, 20])
@pytest.mark.parametrize("count", COUNTS)
def test_no_row_of_a_training_that_counts_its_steps_is_lost(
    count, every, logs_every, names, before
):
    if count == "slow" and logs_every < 20:
        logs_every = 20  # once a count
    run = Run()
    logged = train(run, names, every, logs_every, COUNTS[count], before)
    assert run.values("loss") == logged
    assert not [x for x in run.lost if x]
    records = len(range(0, 100, every))
    for name in names:
        steps = run.values(f"geodiag/{name}/step")
        assert steps == sorted(set(steps))  # in their order, none twice
        assert run.values(f"geodiag/{name}/loss") == steps
        assert len(steps) >= min(records, len(logged)) - 2
        if count == "same" and logs_every <= 10:
            assert len(steps) >= 0.8 * records


@pytest.mark.parametrize("names", [["l2"], ["l2", "linf"]], ids=len)
@pytest.mark.parametrize("logs_every", [0, 1, 7, 100])
@pytest.mark.parametrize("every", [1, 10])
def test_beside_a_training_that_does_not_count_every_record_is_kept(every, logs_every, names):
    run = Run()
    logged = train(run, names, every, logs_every, None, True)
    assert run.values("loss") == logged
    for name in names:
        assert run.values(f"geodiag/{name}/step") == list(range(0, 100, every))


def test_the_header_is_the_runs_config_also_of_a_resumed_one():
    """And it is no row, and takes none."""
    run = Run()
    for lr in (0.1, 0.2):
        sink = WandB(run)
        sink.start(Header("3f2a", {"norm": "L2()", "optimizer": {"lr": lr}}))
        sink.write(A)
        sink.close()
        run._close(run.step + 1)  # as at the end of a process
        expected = {"run": "3f2a", "norm": "L2()", "optimizer": {"lr": lr}}
        assert run.config == {"geodiag": expected}
    assert run.values("geodiag/step") == [0, 0]


def test_the_chart_keeps_every_peak_takes_no_row_and_needs_no_open_run():
    run, steps = Run(), 3 * wandb_rows.POINTS
    sink = WandB(run)
    run.log({"loss": 1.0})
    for t in range(steps):
        sink.write(Record(t, ratio=1.5 if t == 700 else 0.5))
    run.log({"loss": 2.0})
    before = run.step
    sink.close()
    assert run.step == before
    (chart,) = run.open.values()
    line = [(t, y) for t, name, y in chart.table.data if name == "S / threshold"]
    assert (700, 1.5) in line
    assert wandb_rows.POINTS <= len(line) < 2 * wandb_rows.POINTS
    assert line == sorted(line)
    late = WandB(run)
    late.write(Record(steps, ratio=0.5))
    assert late.flush()
    run.finish()
    late.close()  # without a warning: no record is lost


def test_what_found_no_row_is_counted():
    run = Run()
    sink = WandB(run)
    run.log({"loss": 1.0}, step=0)
    for t in range(5):
        sink.write(Record(t))
    with pytest.warns(RuntimeWarning, match="dropped 4 records.*fewer rows; log more often"):
        sink.close()
    assert run.values("geodiag/step") == [0]


def test_the_users_run_is_not_finished_and_has_an_axis_for_the_metrics():
    run = Run()
    sink = WandB(run)
    for record in (A, B):
        sink.write(record)
    sink.close()
    assert not run.finished
    assert run.defined == [
        ("geodiag/step", None, None),
        ("geodiag/*", "geodiag/step", None),
        ("geodiag/ratio", "geodiag/step", "max,last"),
        ("geodiag/realized_edge", "geodiag/step", "max,last"),
    ]
    assert run.rows == [
        prefixed({"step": 0} | SHOWN_A),
        prefixed({"step": 10, "note": B.note} | SHOWN_B),
    ]


def test_a_run_of_the_sinks_own_is_written_at_once_and_finished(monkeypatch):
    run = Run()
    package = SimpleNamespace(run=None, init=lambda **init: run)
    monkeypatch.setitem(sys.modules, "wandb", package)
    sink = WandB()
    for n, record in enumerate((A, B), 1):
        sink.write(record)
        assert len(run.rows) == n
    sink.close()
    assert run.finished


def test_where_wandb_does_not_say_how_the_training_counts_no_row_is_opened():
    run = Run()
    del run._telemetry_obj
    sink = WandB(run)
    for t in range(3):
        sink.write(Record(t))
    assert run.step == 0
    with pytest.warns(RuntimeWarning, match="dropped 2 records"):
        sink.close()


BESIDE = """
import sys, wandb
from geodiag.records import Record
from geodiag.sinks import WandB, wandb_rows
wandb_rows.ROW_WAIT = 60.0
run = wandb.init(mode="offline", project="edge", dir=".")
counts = sys.argv[1] == "counts"
sinks = [WandB(run, prefix=f"geodiag/{n}/") for n in ("l2", "linf")]
for t in range(10):
    if t % 2:
        run.log({"loss": t}, **({"step": t} if counts else {}))
    for sink in sinks:
        sink.write(Record(t, loss=1.0, ratio=t / 5, realized_edge=1.5 if t == 8 else float("nan")))
for sink in sinks:
    sink.close()
run.finish()
"""


@pytest.mark.parametrize("how", ["counts", "does not"])
def test_in_a_real_run(how, tmp_path):
    env = os.environ | {"WANDB_SILENT": "true"}
    command = [sys.executable, "-W", "ignore", "-c", BESIDE, how]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=600)
    from wandb.proto import wandb_internal_pb2

    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found = {"loss": [], "geodiag/l2/step": [], "geodiag/linf/step": []}
    steps, tables, charts = [], {}, {}
    for payload in _leveldb_log(file.read_bytes()[7:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        for item in record.history.item if record.HasField("history") else ():
            name, value = item.key or "/".join(item.nested_key), json.loads(item.value_json)
            if name in found:
                found[name].append(value)
            elif name == "_step":
                steps.append(value)
            elif name.endswith("_table/path"):
                tables[name] = value
        for item in record.config.update if record.HasField("config") else ():
            if "visualize" in item.nested_key:
                charts[item.nested_key[-1]] = json.loads(item.value_json)
    assert found.pop("loss") == [1, 3, 5, 7, 9]
    assert how == "does not" or steps[-1] == 9  # the charts, too, are in a row of the training's
    line = [[t, "S / threshold", t / 5] for t in range(10)]
    edge = [[t, "edge", 1.0] for t in (0, 9)]
    for n in ("l2", "linf"):
        table = f"Custom Chart Tables/geodiag/{n}/edge_table"
        chart = charts[f"geodiag/{n}/edge"]
        assert chart["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
        assert table in json.dumps(chart)
        file = tmp_path / "wandb" / "latest-run" / "files" / tables[f"{table}/path"]
        assert json.loads(file.read_text())["data"] == [*line, [8, "realized edge ζ", 1.5], *edge]
    for steps in found.values():
        assert steps == sorted(set(steps))
        assert len(steps) >= 8
        assert how == "counts" or steps == list(range(10))
