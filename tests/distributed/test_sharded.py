"""Sharded tensors have the array API of plain ones."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed import sharded_checks as checks


@pytest.mark.parametrize(
    "check",
    [checks.array_api, checks.in_place, checks.stacks, checks.other_placements],
    ids=lambda check: check.__name__,
)
def test_sharded(ranks: Any, check: Any) -> None:
    ranks(check)
