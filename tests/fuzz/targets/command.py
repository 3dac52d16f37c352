"""The command line: any arguments that run nothing long."""

from __future__ import annotations

import os
from unittest import mock

from hypothesis import strategies as st

from geodiag import cli
from geodiag.experiments import demo
from geodiag.experiments.reproduction import runner
from tests.fuzz.case import Case
from tests.fuzz.targets.files import FOLDER, logs

WORDS = (
    "plot", "norms", "watch", "demo", "reproduce", "--version", "--help", "-o", "--out", "--once",
    "--lines", "--interval", "--norm", "--steps", "--seed", "--framework", "--quick", "--methods",
    "--models", "--data", "0", "1", "-1", "nan", "inf", "1e400", "9" * 30, "", "x", "ü", "\n",
    "torch", "jax", "l2", "mlp", "signgd", "--", "-", "no.jsonl", "\udc80", ".", "..", "%s", "{}",
)  # fmt: skip
FILES = tuple(
    str(FOLDER / name)
    for name in (
        "cli.jsonl",
        "cli.csv",
        "cli.png",
        "cli.html",
        "missing.jsonl",
        "",
        "cli.jsonl/x.png",
    )
)


def command(case: Case) -> None:
    """geodiag with any words; demo and reproduce stop before they train."""
    draw = case.draw
    (FOLDER / "cli.jsonl").write_bytes(draw(logs()))
    (FOLDER / "cli.csv").write_bytes(draw(logs()))
    first = draw(
        st.sampled_from(("plot", "norms", "watch", "demo", "reproduce")) | st.sampled_from(WORDS)
    )
    rest = draw(st.lists(st.sampled_from(FILES) | st.sampled_from(WORDS), max_size=5))
    argv = [first, *rest]
    if first == "watch":  # else it follows the file for ever
        argv.append("--once")
        if "--" in argv or "--help" in argv:
            return
    if first == "plot" and not any(a in ("-o", "--out") for a in argv):
        argv[1:1] = ["-o", str(FOLDER / "cli.png")]
    here = os.getcwd()
    os.chdir(FOLDER)
    try:
        with (
            mock.patch.object(demo, "run", return_value=0),
            mock.patch.object(runner, "run", return_value=0),
        ):
            status = case.call("geodiag", _main, argv)
    finally:
        os.chdir(here)
    assert status in (0, 2), status


def _main(argv: list[str]) -> int:
    try:
        return cli.main(argv)
    except SystemExit as e:  # argparse: wrong usage, --help, --version
        return int(e.code or 0)


TARGETS = {"command line": (command, 1.5)}
