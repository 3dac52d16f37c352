"""``geodiag reproduce`` killed in the middle: what is finished is whole, the rest is run again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geodiag.experiments.reproduction import cells, data, runner
from geodiag.records import read_records, to_json
from geodiag.report.watch import Tail

pytest.importorskip("torch")
pytest.importorskip("sklearn")


def rows(path):
    """What does not depend on the clock."""
    return [dataclasses.replace(r, seconds=0.0).to_dict() for r in read_records(path)]


def same(a, b):
    return json.dumps(a) == json.dumps(b)  # NaN equals NaN


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_cell_is_not_kept_and_is_run_again(error, monkeypatch, tmp_path):
    digest = data.task("mlp", None, 0).digest
    cell = cells.Cell("torch", "signgd", "mlp", 1e-3, 4, 4, 0, digest)
    runner.work(cell, None, tmp_path / ".")
    (finished,) = tmp_path.glob("*.jsonl")
    undisturbed = rows(finished)
    finished.unlink()
    made = []

    def fails_at_the_third(record):
        made.append(record.step)
        if len(made) == 3:
            raise error("injected")
        return to_json(record)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "to_json", fails_at_the_third)
        with pytest.raises(error):
            runner.work(cell, None, tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
    runner.work(cell, None, tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".jsonl"]
    assert same(rows(finished), undisturbed)


def test_a_note_may_hold_what_ends_a_line_elsewhere(tmp_path):
    path = tmp_path / "cell.jsonl"
    path.write_text('{"step": 0, "note": "a\u2028b\x85c"}\n{"step": 1, "loss": null}\n', "utf-8")
    log = Tail(path)
    assert log.update()
    assert [r.step for r in read_records(path)] == [r.step for r in log.records] == [0, 1]


# Long enough to be killed in the middle; nothing is drawn.
RUN = """
import sys
from pathlib import Path
from geodiag.experiments.reproduction import cells
from geodiag.experiments.reproduction import quadratics
from geodiag.experiments.reproduction import runner
steps = int(sys.argv[2])
for method in ("gd", "signgd"):
    cells.TRAININGS[method, "mlp"] = cells.Training(1e-3, steps, steps)
quadratics.NAMES = ("l2",)
runner._draw_all = lambda *args: None
sys.exit(runner.run(methods=["gd", "signgd"], models=["mlp"], out=Path(sys.argv[1])))
"""


def start(out, steps):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(out), str(steps)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def children(pid):
    """The processes that this one has started, by the system's own account."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs the system's list of processes")
def test_a_killed_run_ends_with_its_processes_and_is_resumed(tmp_path):
    steps = 60
    assert start(tmp_path / "whole", steps).wait(timeout=900) == 0
    out = tmp_path / "killed"
    run = start(out, steps)
    until(lambda: any(p.stat().st_size > 2000 for p in out.glob("*.part")))
    workers = children(run.pid)
    assert len(workers) >= 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    until(lambda: not any(Path(f"/proc/{pid}/status").exists() for pid in workers), seconds=60)
    cut = [p.name for p in out.glob("*.part")]
    assert cut
    time.sleep(1)
    assert [p.name for p in out.glob("*.part")] == cut  # nobody finishes them
    assert start(out, steps).wait(timeout=900) == 0
    assert not list(out.glob("*.part"))
    assert (out / "results.md").read_text().count("|") > 20
    for path in (tmp_path / "whole").glob("*.jsonl"):
        assert same(rows(out / path.name), rows(path))
    assert os.listdir(out).count("results.md") == 1
