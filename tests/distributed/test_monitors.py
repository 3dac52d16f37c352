"""Monitors of runs on several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.distributed import monitor_checks as checks


def test_attach_under_ddp(ranks: Any, tmp_path: Path) -> None:
    ranks(checks.attached, folder=str(tmp_path))


def test_one_rank_decides_when_to_measure(ranks: Any) -> None:
    ranks(checks.budgeted)


def test_a_failure_on_one_rank_is_a_note_on_all(ranks: Any, tmp_path: Path) -> None:
    ranks(checks.failing, folder=str(tmp_path))
