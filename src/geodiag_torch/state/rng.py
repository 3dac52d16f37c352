"""Freezing the random state: every pass over the data draws the same random numbers.

An oracle records the state of all generators when it is made, and autocast with it. Each of its
passes starts from that state, so that dropout masks and shuffling are the same in each; afterwards
the caller's own state is restored, bit for bit. Generators inside of a loader of the user's own
class are not found.
"""

from __future__ import annotations

import copy
import ctypes
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch

from geodiag_torch.state.interrupts import uninterrupted

T = TypeVar("T")
WORDS = 625  # of a Mersenne Twister: 624 of its state, and the position among them


class FrozenRandomState:
    """The state of all generators that a pass draws from, and of autocast, as they are now.

    Those of the device are among them, and where ``data`` is a loader its own.
    """

    def __init__(self, device: torch.device, data: Any) -> None:
        self._device = device
        self._generators = _generators(data)
        kind = device.type
        self._autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        self._numpy = NumpyState()
        self._state = self._read(backward=False)

    @property
    def autocast(self) -> bool:
        """Whether passes run under autocast."""
        return self._autocast[0]

    def without_autocast(self) -> FrozenRandomState:
        """The same random state, with autocast disabled."""
        found = copy.copy(self)
        found._autocast = (False, self._autocast[1])
        return found

    @contextmanager
    def restored(self, backward: bool = False) -> Iterator[None]:
        """Inside, generators and autocast are in this state and gradients are enabled.

        ``backward``: a backward pass draws, if at all, where it recomputes activations, and from
        torch alone; the other generators are left alone.
        """
        before = self._read(backward)
        try:
            self._write(self._state, backward)
            with nullcontext() if backward else self._numpy.restored(), self._modes():
                yield
        finally:
            self._write(before, backward)

    def _read(self, backward: bool) -> dict[str, Any]:
        state: dict[str, Any] = {"torch": torch.random.get_rng_state()}
        if self._device.type != "cpu":
            state["device"] = torch.get_device_module(self._device).get_rng_state(self._device)
        if not backward:
            state["python"] = random.getstate()
            state["loader"] = [g.get_state() for g in self._generators]
        return state

    def _write(self, state: dict[str, Any], backward: bool) -> None:
        torch.random.set_rng_state(state["torch"])
        if "device" in state:
            torch.get_device_module(self._device).set_rng_state(state["device"], self._device)
        if not backward:
            random.setstate(state["python"])
            for generator, saved in zip(self._generators, state["loader"], strict=True):
                generator.set_state(saved)

    def _modes(self) -> AbstractContextManager[None]:
        """Gradients enabled and autocast as recorded; no context where all is so already."""
        autocast = self.autocast or torch.is_autocast_enabled(self._device.type)
        plain = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        return nullcontext() if plain and not autocast else self._changed_modes()

    @contextmanager
    def _changed_modes(self) -> Iterator[None]:
        enabled, dtype = self._autocast
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(self._device.type, dtype=dtype, enabled=enabled),
        ):
            yield


class NumpyState:
    """The state of NumPy's global generator, as it is now.

    Reading or writing it takes 30 µs, a good part of a small network's forward pass, and most
    passes draw nothing from it. So the generator's memory is compared first, which takes 1 µs.
    """

    def __init__(self) -> None:
        self._state = np.random.get_state(legacy=False)
        # A normal number that was drawn ahead can be used up without a change in that memory.
        self._memory = None if self._state.get("has_gauss") else _numpy_memory()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the generator is in this state; afterwards in the one that it had before."""
        here = self._memory is not None and self._memory == _numpy_memory()
        before = self._state if here else np.random.get_state(legacy=False)
        try:
            if not here:
                np.random.set_state(self._state)
            yield
        finally:
            if not here or self._memory != _numpy_memory():
                np.random.set_state(before)


def outside_inference(run: Callable[[], T]) -> T:
    """``run()`` outside of inference mode, whose tensors autograd cannot use."""
    if not torch.is_inference_mode_enabled():
        return run()

    def outside(run: Callable[[], T]) -> T:
        with torch.inference_mode(False):
            return run()

    return uninterrupted(outside, run)


def _numpy_memory() -> bytes | None:
    """The memory of NumPy's global generator; None where it is no Mersenne Twister."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if not isinstance(generator, np.random.MT19937):
        return None
    return ctypes.string_at(generator.ctypes.state_address, 4 * WORDS)


def _generators(data: Any) -> list[torch.Generator]:
    """The generators that a DataLoader, its dataset and its samplers own, each once."""
    batch_sampler = getattr(data, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", None)
    owners = (data, getattr(data, "dataset", None), getattr(data, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in (*owners, batch_sampler, inner)]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())
