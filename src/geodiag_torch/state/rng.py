"""Freezing what a pass over the data draws: random numbers, autocast, gradient mode.

Every pass of an oracle sees the same random state (the one at its creation), so dropout masks and
shuffling are the same in each; afterwards the user's own state is back, bit for bit. Generators
that a loader of the user's own hides cannot be seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from geodiag_torch.state.interrupts import uninterrupted
from geodiag_torch.state.numpy_rng import NumpyState

RandomState = dict[str, Any]
T = TypeVar("T")


def random_state(device: torch.device, data: Any) -> RandomState:
    """Autocast, and the state of all generators that a pass draws from."""
    kind = device.type
    autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    own = {"autocast": autocast, "numpy": NumpyState()}
    return own | _state(device, _generators(data), backward=False)


def _state(device: torch.device, loader: list[torch.Generator], backward: bool) -> RandomState:
    """That of all but NumPy's; ``loader``: the generators of a loader.

    A backward pass draws, if at all, where it recomputes activations, and from torch alone.
    """
    state: RandomState = {"torch": torch.random.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    if not backward:
        state["python"] = random.getstate()
        state["loader"] = [(g, g.get_state()) for g in loader]
    return state


def _restore(state: RandomState, device: torch.device, backward: bool) -> None:
    torch.random.set_rng_state(state["torch"])
    if "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)
    if not backward:
        random.setstate(state["python"])
        for generator, saved in state["loader"]:
            generator.set_state(saved)


def _generators(data: Any) -> list[torch.Generator]:
    """The generators that a DataLoader, its dataset and its samplers own, each once."""
    batch_sampler = getattr(data, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", None)
    owners = (data, getattr(data, "dataset", None), getattr(data, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in (*owners, batch_sampler, inner)]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())


@contextmanager
def frozen(state: RandomState, device: torch.device, backward: bool = False) -> Iterator[None]:
    """Run with the random ``state``, gradients on; restore the caller's state in any case."""
    before = _state(device, [g for g, _ in state["loader"]], backward)
    try:
        _restore(state, device, backward)
        with nullcontext() if backward else state["numpy"].lent(), _modes(state, device):
            yield
    finally:
        _restore(before, device, backward)


def _modes(state: RandomState, device: torch.device) -> AbstractContextManager[None]:
    """Gradients on, and autocast as it was: nothing where all is so, as in most training loops."""
    enabled, dtype = state["autocast"]
    autocast = enabled or torch.is_autocast_enabled(device.type)
    if autocast or torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        return _changed_modes(device, enabled, dtype)
    return nullcontext()


@contextmanager
def _changed_modes(device: torch.device, enabled: bool, dtype: torch.dtype) -> Iterator[None]:
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, dtype=dtype, enabled=enabled),
    ):
        yield


def outside_inference(run: Callable[[], T]) -> T:
    """``run()`` outside of inference mode, whose tensors autograd cannot use."""
    if not torch.is_inference_mode_enabled():
        return run()

    def outside(run: Callable[[], T]) -> T:
        with torch.inference_mode(False):
            return run()

    return uninterrupted(outside, run)
