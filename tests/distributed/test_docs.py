"""The examples of docs/distributed.md, as they stand, under torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import geodiag

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "distributed.md"
EXAMPLES = re.findall(
    r"^```py\n# (\S+): torchrun (.*?) \S+\n(.*?)^```$", PAGE.read_text(), re.M | re.S
)


def test_there_are_examples() -> None:
    assert [name for name, _, _ in EXAMPLES] == ["run.py", "sharded.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "code"), EXAMPLES, ids=[name for name, _, _ in EXAMPLES]
)
def test_example_runs(tmp_path: Path, name: str, options: str, code: str) -> None:
    (tmp_path / name).write_text(code)
    source = str(Path(geodiag.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options.split(), name],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    # FSDP's threads abort some processes at their very end, also without geodiag: SIGABRT.
    aborted = "Signal 6" in done.stderr and "Traceback" not in done.stderr.partition("Signal 6")[0]
    assert done.returncode == 0 or aborted, done.stderr
    # Two ranks may print on one line.
    said = dict(re.findall(r"rank (\d): (\d+\.\d{6})", done.stdout))
    assert set(said) == {"0", "1"}, done.stdout
    assert said["0"] == said["1"]
    assert float(said["0"]) > 0
