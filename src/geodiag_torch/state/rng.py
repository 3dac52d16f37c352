"""Freezing the random state: every pass over the data draws the same random numbers.

An oracle records the state of all generators when it is made, and autocast with it. Each of its
passes starts from that state, so that dropout masks and shuffling are the same in each; afterwards
the caller's own state is restored, bit for bit. Generators inside of a loader of the user's own
class are not found.
"""

from __future__ import annotations

import copy
import ctypes
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from geodiag.core.threads import others
from geodiag_torch.state.interrupts import Lending, Lent, uninterrupted
from geodiag_torch.state.threads import SharedDraws

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
        self.shared = SharedDraws()
        self.ends: dict[str, Any] = {}  # where a pass leaves each generator
        self._numpy = NumpyState(self.shared)
        self.state = self.read(backward=False)

    @property
    def autocast(self) -> bool:
        """Whether passes run under autocast."""
        return self._autocast[0]

    def without_autocast(self) -> FrozenRandomState:
        """The same random state, with autocast disabled."""
        found = copy.copy(self)
        found._autocast, found.ends = (False, self._autocast[1]), {}
        return found

    @contextmanager
    def restored(self, backward: bool = False) -> Iterator[None]:
        """Inside, generators and autocast are in this state and gradients are enabled."""
        generators, *numpy = self.one_pass(backward)
        with self.modes(), Lent(generators, *numpy):
            yield
            generators.completed = True

    def one_pass(self, backward: bool = False) -> tuple[OwnPass, *tuple[Lending, ...]]:
        """The generators, to be lent for one pass.

        ``backward``: a backward pass draws, if at all, where it recomputes activations, and from
        torch alone; the other generators are left alone.
        """
        shared = ProbePass if self.shared.probing else SharedPass
        generators = (shared if others() else OwnPass)(self, backward)
        return (generators,) if backward else (generators, _NumpyPass(self._numpy))

    def read(self, backward: bool) -> dict[str, Any]:
        """The state of each generator now."""
        state: dict[str, Any] = {"torch": torch.random.get_rng_state()}
        if self._device.type != "cpu":
            state["device"] = torch.get_device_module(self._device).get_rng_state(self._device)
        if not backward:
            state["python"] = random.getstate()
            for i, generator in enumerate(self._generators):
                state[f"loader {i}"] = generator.get_state()
        return state

    def write(self, state: Mapping[str, Any]) -> None:
        """Put these generators into these states."""
        for name, x in state.items():
            if name == "torch":
                torch.random.set_rng_state(x)
            elif name == "device":
                torch.get_device_module(self._device).set_rng_state(x, self._device)
            elif name == "python":
                random.setstate(x)
            else:
                self._generators[int(name.split()[1])].set_state(x)

    def renew(self, name: str) -> None:
        """Reseed a generator, from the system."""
        if name == "torch":
            torch.default_generator.manual_seed(int.from_bytes(os.urandom(7)))
        elif name == "device":
            torch.get_device_module(self._device).seed()
        elif name == "python":
            random.seed()
        else:
            self._generators[int(name.split()[1])].seed()

    def modes(self) -> AbstractContextManager[None]:
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


class OwnPass:
    """The generators, for one pass, where no other thread runs."""

    def __init__(self, frozen: FrozenRandomState, backward: bool) -> None:
        self._frozen, self._backward = frozen, backward
        self._inside = _for(frozen.state, backward)
        self._before: dict[str, Any] | None = None
        self.completed = False

    def lend(self) -> None:
        self._before = self._frozen.read(self._backward)
        self._frozen.write(self._inside)

    def give_back(self, for_good: bool) -> None:
        if self._before is None:
            return
        if not for_good:
            self._inside = self._frozen.read(self._backward)
        self._frozen.write(self._before)


class SharedPass(OwnPass):
    """The same where another thread may draw from them meanwhile.

    A generator that passes are known not to draw from is left alone. Of one that they draw from it
    is known where a pass leaves it. Where it is elsewhere, another thread has drawn too: it is
    reseeded, since the state before would give that thread the same numbers again.
    """

    def lend(self) -> None:
        self._before = before = self._frozen.read(self._backward)
        drawn = self._frozen.shared.drawn
        self._written = {
            name: x
            for name, x in self._inside.items()
            if drawn.get(name) is not False and not _same(x, before[name])
        }
        self._frozen.write(self._written)

    def give_back(self, for_good: bool) -> None:
        if self._before is None:
            return
        end, start = self._frozen.read(self._backward), {**self._before, **self._written}
        if not for_good:
            self._inside = end
        settled, back = self.completed and not self._backward, {}
        for name, before in self._before.items():
            if self._frozen.shared.drawn.get(name) is False:
                continue
            known = self._frozen.ends.setdefault(name, end[name]) if settled else end[name]
            if not _same(known, end[name]):
                self._frozen.renew(name)
                self._frozen.shared.foreign = True
            elif not _same(end[name], start[name]) or name in self._written:
                back[name] = before
        self._frozen.write(back)


class ProbePass(OwnPass):
    """A first pass, by which it becomes known which generators passes draw from."""

    def __init__(self, frozen: FrozenRandomState, backward: bool) -> None:
        super().__init__(frozen, backward)
        self._inside = {}

    def give_back(self, for_good: bool) -> None:
        if self._before is None:
            return
        end, drawn = self._frozen.read(self._backward), self._frozen.shared.drawn
        if not for_good:
            self._inside = end
        back = {}
        for name, before in self._before.items():
            moved = not _same(end[name], before)
            if self.completed:
                drawn.setdefault(name, moved)
                if drawn[name] and _same(before, self._frozen.state[name]):
                    self._frozen.ends[name] = end[name]
            if self._frozen.shared.foreign and drawn[name]:
                self._frozen.renew(name)
            elif moved and drawn.get(name) is not False:
                back[name] = before
        self._frozen.write(back)


def _for(state: Mapping[str, Any], backward: bool) -> dict[str, Any]:
    return {n: x for n, x in state.items() if not backward or n in ("torch", "device")}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return bool(np.array_equal(a.numpy(), b.numpy()))
    return bool(a == b)


class NumpyState:
    """The state of NumPy's global generator, as it is now.

    Reading or writing it takes 30 µs, a good part of a small network's forward pass, and most
    passes draw nothing from it. So the generator's memory is compared first, which takes 1 µs.
    """

    # Its memory and its state as they were last read; None once a pass has drawn from it.
    _read: ClassVar[tuple[bytes | None, Any] | None] = None, None

    def __init__(self, shared: SharedDraws | None = None) -> None:
        self.shared = SharedDraws() if shared is None else shared
        memory, known = _numpy_memory(), NumpyState._read
        if known is not None and memory is not None and known[0] == memory:
            self.state = known[1]
        else:
            self.state = np.random.get_state(legacy=False)
        # A normal number that was drawn ahead can be used up without a change in that memory.
        self.memory = None if self.state.get("has_gauss") else memory
        if known is not None:
            NumpyState._read = self.memory, self.state

    @classmethod
    def drawn(cls) -> None:
        """A pass has drawn from it: no reading is reused from now on."""
        cls._read = None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the generator is in this state; afterwards in the one that it had before."""
        with Lent(_NumpyPass(self)):
            yield


class _NumpyPass:
    """NumPy's global generator, for one pass."""

    def __init__(self, frozen: NumpyState) -> None:
        self._frozen, self._inside = frozen, frozen.state
        self._before: Any = None

    def lend(self) -> None:
        frozen = self._frozen
        here = self._inside is frozen.state and frozen.memory == _numpy_memory()
        here = here and frozen.memory is not None
        self._before = frozen.state if here else np.random.get_state(legacy=False)
        self._left = not here and frozen.shared.leaves("numpy")
        if not (here or self._left):
            np.random.set_state(self._inside)
        self._memory = _numpy_memory() if here or self._left else None

    def give_back(self, for_good: bool) -> None:
        if self._before is None:
            return
        moved = self._memory is None or self._memory != _numpy_memory()
        if moved:
            NumpyState.drawn()
        if not for_good:
            self._inside = np.random.get_state(legacy=False)
        if self._frozen.shared.probing and others():
            self._frozen.shared.drawn.setdefault("numpy", moved)
        if moved and not self._frozen.shared.leaves("numpy", False):
            np.random.set_state(self._before)


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
