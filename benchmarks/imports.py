"""What ``import geodiag`` takes beyond NumPy, in fresh interpreters, as a ratio to NumPy's own."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.report import spread, table

CODE = """
import time
start = time.process_time()
import numpy
middle = time.process_time()
import geodiag
print(middle - start, time.process_time() - middle)
"""


def run(quick: bool) -> None:
    """Print one row; seconds are the processor's, and the ratio is within one interpreter."""
    _times()  # writes the bytecode
    rows = [_times() for _ in range(5 if quick else 21)]
    ours = [b for _, b in rows]
    table(
        "Import, beyond NumPy: median and quartiles of fresh interpreters",
        ["NumPy, s", "geodiag, s", "geodiag/NumPy"],
        [[spread([a for a, _ in rows]), spread(ours), spread([b / a for a, b in rows])]],
    )


def _times() -> tuple[float, float]:
    env = {name: x for name, x in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    numpy, geodiag = map(float, done.stdout.split())
    return numpy, geodiag
