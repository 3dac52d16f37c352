"""Fixtures of this folder."""

from __future__ import annotations

from typing import Any

import pytest

from tests.geodiag_torch.trainers import hide_torchvision


@pytest.fixture(scope="session")
def transformers() -> Any:
    hide_torchvision()
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")


@pytest.fixture
def hf(transformers: Any, old_things_frozen: None) -> Any:
    """The package transformers, whose Trainer looks for garbage before and after training."""
    return transformers
