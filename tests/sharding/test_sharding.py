"""JAX over four devices; the checks are in checks.py, and so is what they compare with.

Devices are simulated in an interpreter of its own, for XLA counts them once, when JAX starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 600  # a hard end, for a machine that does much else


def check(*names: str) -> None:
    simulated = len(jax.devices()) < 4
    flags = os.environ.get("XLA_FLAGS", "")
    more = {"JAX_PLATFORMS": "cpu"} if simulated else {}
    if simulated:
        flags += " --xla_force_host_platform_device_count=4"
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-m", "tests.sharding.checks", *names],
        cwd=ROOT,
        env={**os.environ, **more, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [word for name in names for word in (name, "passed")]


def test_sharded_results_equal_those_of_one_device():
    check("equal")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["oracle", "pieces", "tracked", "explicit", "refused", "gathers", "whole", "certified"]
)
def test_over_four_devices(name):
    check(name)
