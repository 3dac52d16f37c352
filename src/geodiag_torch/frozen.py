"""Contexts that freeze what a forward pass draws, and leave no trace of having run.

Every forward pass of an oracle sees the same random state (the one at its creation), so dropout
masks and shuffling are the same in each; afterwards the user's own state is back, bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def random_state(device: torch.device, data: Any) -> RandomState:
    """The state of every generator that a forward pass or a loader may draw from."""
    state: RandomState = {
        "torch": torch.random.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "loader": [g.get_state() for g in _generators(data)],
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def _restore(state: RandomState, device: torch.device, data: Any) -> None:
    torch.random.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    for generator, saved in zip(_generators(data), state["loader"], strict=True):
        generator.set_state(saved)
    if "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)


def _generators(data: Any) -> list[torch.Generator]:
    """The generators that a DataLoader owns, each once."""
    owners = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())


@contextmanager
def frozen(state: RandomState, device: torch.device, data: Any) -> Iterator[None]:
    """Run with the random ``state``, gradients on; restore the caller's state in any case."""
    before = random_state(device, data)
    _restore(state, device, data)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        _restore(before, device, data)
