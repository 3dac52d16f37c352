"""Callbacks of training frameworks on several ranks."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tests.distributed import callback_checks as checks

pytestmark = pytest.mark.skipif(
    not (find_spec("transformers") and find_spec("lightning")), reason="no trainers are installed"
)


def test_sharded_under_hugging_face(ranks: Any) -> None:
    ranks(checks.huggingface)


def test_replicated_modules_are_measured_on_one_rank_or_together(ranks: Any) -> None:
    ranks(checks.replicated)


@pytest.mark.slow
def test_sharded_under_lightning(ranks: Any) -> None:
    ranks(checks.lightning)


def test_synchronised_batch_norm_is_refused_on_every_rank(ranks: Any) -> None:
    ranks(checks.synchronised_batch_norm)


def test_a_failure_on_one_rank_ends_no_training(ranks: Any) -> None:
    ranks(checks.a_failure_on_one_rank)
