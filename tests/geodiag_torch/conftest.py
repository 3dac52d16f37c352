"""Fixtures of this folder."""

from __future__ import annotations

from typing import Any

import pytest

from tests.geodiag_torch.trainers import hide_torchvision


@pytest.fixture
def hf() -> Any:
    """The package transformers, whose Trainer needs accelerate."""
    hide_torchvision()
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")
