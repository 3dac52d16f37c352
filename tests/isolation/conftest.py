"""Fixtures: fresh interpreters, and environments of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.isolation.environment import Environment, run

Finished = subprocess.CompletedProcess[str]


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Finished]:
    """``python(code, *options)``: run code in a fresh interpreter of this environment."""

    def fresh(code: str, *options: str, **env: str) -> Finished:
        return run(sys.executable, *options, "-c", code, cwd=tmp_path, **env)

    return fresh


@pytest.fixture(scope="module")
def environments(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Environment]:
    """``environments(name)``: a new environment."""
    return lambda name: Environment(tmp_path_factory.mktemp(name) / "venv")
