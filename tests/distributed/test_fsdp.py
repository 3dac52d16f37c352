"""Sharded parameters and sharded data on two ranks, against one process with all of both."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed import fsdp_checks as checks
from tests.distributed import layout_checks as layout


@pytest.mark.parametrize(
    "check",
    [
        checks.equal_the_union,
        checks.other_questions,
        pytest.param(checks.options_of_fsdp, marks=pytest.mark.slow),
        pytest.param(checks.unsharded_at_first, marks=pytest.mark.slow),
        checks.hooks_stay_silent,
        checks.a_failure,
        checks.refused,
        pytest.param(checks.in_float32, marks=pytest.mark.slow),
        pytest.param(layout.placements, marks=pytest.mark.slow),
        checks.trains_alike,
        checks.optimizers,
        layout.a_part,
    ],
    ids=lambda check: check.__name__,
)
def test_fsdp(ranks: Any, check: Any) -> None:
    ranks(check)


@pytest.mark.slow
def test_fsdp_in_other_norms(ranks: Any) -> None:
    ranks(checks.equal_the_union, kinds=["group", "l1", "linf"])


@pytest.mark.slow
def test_replicas(ranks: Any) -> None:
    ranks(layout.replicas, size=4)


def test_a_rank_that_is_killed(ranks: Any) -> None:
    ranks(checks.killed, timeout=5, codes=[0, -9])
