"""The ``geodiag`` command: what it prints, and its exit status."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from geodiag.cli import main
from geodiag.errors import ArgumentError
from tests.isolation.environment import run

# The names that the paper's norms, and the usual others, go by.
NORMS = [
    "block",
    "frobenius",
    "l1",
    "l2",
    "linf",
    "muon",
    "nuclear",
    "preconditioned",
    "rms",
    "spectral",
]


@pytest.fixture
def demo(monkeypatch):
    """A stand-in for the demo, which notes its arguments and does what it is told."""
    stub = SimpleNamespace(calls=[], outcome=0)

    def run(**arguments):
        stub.calls.append(arguments)
        if isinstance(stub.outcome, BaseException):
            raise stub.outcome
        return stub.outcome

    monkeypatch.setattr("geodiag.experiments.demo.run", run)
    return stub


def test_norms_is_an_aligned_table(capsys):
    assert main(["norms"]) == 0
    out, err = capsys.readouterr()
    header, *rows = out.splitlines()
    built_in = [row for row in rows if row.split()[1] == "geodiag"]
    assert [row.split()[0] for row in built_in] == NORMS
    at = header.index("OWNER"), header.index("WHAT")
    for row in built_in:
        assert row[at[0] :].startswith("geodiag ")
        assert row[at[0] - 1] == row[at[1] - 1] == " "
        assert len(row[at[1] :]) > 10
        assert row[at[1]] != " "
    assert err == ""


def test_norms_prints_where_the_terminal_lacks_the_characters(python):
    code = "from geodiag.cli import main; raise SystemExit(main(['norms']))"
    done = python(code, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "spectral" in done.stdout


def test_version_is_that_of_the_project(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"geodiag {metadata.version('geodiag')}\n"


def test_the_installed_command_runs(tmp_path):
    command = shutil.which("geodiag", path=str(Path(sys.executable).parent))
    assert command, "the package is not installed in this environment"
    done = run(command, "norms", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "spectral" in done.stdout


def test_a_reader_that_stops_early_sees_no_traceback(tmp_path):
    """As `geodiag norms | head -1`: the pipe is closed before anything is written to it."""
    read, write = os.pipe()
    os.close(read)
    code = "from geodiag.cli import main; raise SystemExit(main(['norms']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    "argv",
    [[], ["nonsense"], ["norms", "--no-such"], ["demo", "--framework", "tf"], ["demo", "--steps"]],
    ids=["nothing", "command", "option", "framework", "value"],
)
def test_wrong_usage_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage: geodiag" in capsys.readouterr().err


def test_demo_passes_its_options_on(demo, tmp_path):
    demo.outcome = 3
    options = [
        "--framework",
        "jax",
        "--norm",
        "l2",
        "--norm",
        "linf",
        "--steps",
        "7",
        "--seed",
        "5",
    ]
    assert main(["demo", *options, "--out", str(tmp_path)]) == 3
    assert demo.calls == [
        {"framework": "jax", "norms": ["l2", "linf"], "steps": 7, "out": tmp_path, "seed": 5}
    ]


def test_demo_leaves_open_what_was_not_said(demo):
    assert main(["demo"]) == 0
    (call,) = demo.calls
    assert call == {
        "framework": "torch",
        "norms": None,
        "steps": None,
        "out": Path("geodiag-demo"),
        "seed": 0,
    }


def test_a_geodiag_error_is_one_message_and_2(demo, capsys):
    demo.outcome = ArgumentError("no such norm", got="'l7'", do="use l2")
    assert main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "geodiag: error: no such norm. Got: 'l7'. Do: use l2.\n"


def test_an_interrupt_is_130(demo, capsys):
    demo.outcome = KeyboardInterrupt()
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "geodiag: interrupted\n"


def test_other_errors_are_not_hidden(demo):
    demo.outcome = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


@pytest.mark.parametrize(
    ("framework", "package"),
    [("torch", "torch"), ("torch", "sklearn"), ("jax", "optax"), ("jax", "rich")],
)
def test_demo_without_its_extras_says_what_to_install(
    monkeypatch, capsys, tmp_path, framework, package
):
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == package else real(n))
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--framework", framework]) == 2
    err = capsys.readouterr().err
    assert f"no {package}." in err
    assert f'pip install "geodiag[{framework},plot,demo]"' in err
    assert not any(tmp_path.iterdir())


def test_norms_as_json(capsys):
    assert main(["norms", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["name"]: r["owner"] for r in rows}["l2"] == "geodiag"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("geodiag mea", "measure"),
        ("geodiag plot --sty", "--style"),
        ("geodiag plot ru", "run.jsonl"),
    ],
)
def test_completion(words, found, capsys, tmp_path):
    (tmp_path / "run.jsonl").touch()
    assert main(["completion", "bash"]) == 0
    ask = f"COMP_WORDS=({words}); COMP_CWORD={words.count(' ')}; _geodiag; echo ${{COMPREPLY[@]}}"
    script = f"{capsys.readouterr().out}\n{ask}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [found], done.stderr
