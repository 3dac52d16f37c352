"""Whatever one rank meets, the others end with an error too, and soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.distributed import fault_checks as checks


def test_an_exception_on_one_rank(ranks: Any) -> None:
    ranks(checks.one_rank_fails)


def test_a_bad_batch_on_one_rank(ranks: Any) -> None:
    ranks(checks.bad_batch)


def test_what_differs_before_a_pass(ranks: Any) -> None:
    ranks(checks.told_before_a_pass)


def test_no_double_backward_on_one_rank(ranks: Any) -> None:
    ranks(checks.same_fall_back)


def test_a_change_on_one_rank(ranks: Any) -> None:
    ranks(checks.changed_on_one_rank)


def test_other_arguments_on_one_rank(ranks: Any) -> None:
    ranks(checks.other_arguments)


def test_a_rank_that_hangs(ranks: Any, tmp_path: Path) -> None:
    ranks(checks.hanging, timeout=6, folder=str(tmp_path))


def test_a_rank_that_is_killed(ranks: Any) -> None:
    ranks(checks.killed, timeout=5, codes=[0, -9])
