"""The demo as the user runs it, to its end, in both frameworks: every method meets its edge."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

from geodiag.cli import main
from geodiag.experiments.demo import RUNS
from geodiag.experiments.reproduction.cells import METHODS


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_every_method_sharpens_and_then_hovers_at_two_over_lr(framework, tmp_path):
    # In a process of its own, so that JAX runs in float32, as for a user.
    command = [sys.executable, "-m", "geodiag", "demo", "--framework", framework]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    rows = records_of(tmp_path / "demo.jsonl")
    for norm, (method, training) in RUNS.items():
        own = [row for row in rows if row["norm"] == norm]
        late = [row for row in own if row["step"] >= 0.8 * training.steps]
        ratio = statistics.median(training.lr * row["sharpness"] / 2 for row in late)
        assert 0.9 <= ratio <= 1.3, norm
        smoothness = statistics.median(row["directional_smoothness"] for row in late)
        assert 0.9 <= training.lr * smoothness / 2 <= 1.1, norm  # D hovers there too
        assert own[0]["sharpness"] * training.lr / 2 < 0.9, norm  # and it was not there
        assert own[-1]["loss"] < own[0]["loss"] / 5
        assert METHODS[method].title in done.stdout


def records_of(log):
    """The rows that are no header of a run."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row for row in rows if "step" in row]


def test_every_method_is_run(tmp_path, capsys):
    assert main(["demo", "--steps", "20", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    rows, shown = records_of(tmp_path / "demo.jsonl"), capsys.readouterr().out
    for norm, (method, _) in RUNS.items():
        own = [row for row in rows if row["norm"] == norm]
        assert own[-1]["loss"] < own[0]["loss"]
        assert METHODS[method].title in shown


def test_options_shorten_and_select(tmp_path):
    logs = []
    for seed in ("1", "1", "2"):
        out = tmp_path / "out"
        options = ["--norm", "linf", "--steps", "20", "--seed", seed, "--out", str(out)]
        assert main(["demo", *options]) == 0
        rows = records_of(out / "demo.jsonl")
        assert {row["norm"] for row in rows} == {"linf"}
        assert max(row["step"] for row in rows) == 19
        logs.append([row["sharpness"] for row in rows])
    assert logs[0] == logs[1] != logs[2]


@pytest.mark.parametrize(
    ("options", "words"), [(["--norm", "l7"], "l7"), (["--steps", "3"], "at least 10 steps")]
)
def test_unusable_options(options, words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "geodiag", "demo", *options, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
