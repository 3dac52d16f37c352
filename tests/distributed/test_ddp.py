"""Two ranks, each with its own shard of the data, against one process with all of it."""

from __future__ import annotations

from typing import Any

from tests.distributed import ddp_checks as checks


def test_results_equal_those_of_the_union(ranks: Any) -> None:
    ranks(checks.equal_the_union)


def test_one_batch_on_each_rank(ranks: Any) -> None:
    ranks(checks.one_batch_each)


def test_targets_that_a_loss_leaves_out(ranks: Any) -> None:
    ranks(checks.targets_left_out)


def test_losses_gradients_and_products(ranks: Any) -> None:
    ranks(checks.other_questions)


def test_ranks_agree_on_what_to_keep(ranks: Any) -> None:
    ranks(checks.kept_and_recomputed)


def test_without_a_group_nothing_is_communicated(ranks: Any) -> None:
    ranks(checks.alone_on_rank_0, timeout=30)


def test_groups_of_some_ranks(ranks: Any) -> None:
    ranks(checks.subgroups, size=3)


def test_synchronised_batch_norm(ranks: Any) -> None:
    ranks(checks.synchronised_batch_norm)
