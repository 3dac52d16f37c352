"""Frozen random states: the same draws in every pass, and the caller's state afterwards."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from geodiag_torch.state.rng import FrozenRandomState, NumpyState

DRAWS = {
    "none": lambda: None,
    "uniform": np.random.random,
    "normal": np.random.standard_normal,  # draws two, and keeps one
    "seed": lambda: np.random.seed(5),
    "a million": lambda: np.random.random(10**6),
}


def state():
    kind, words, *rest = np.random.get_state()
    return kind, words.tolist(), *rest


@pytest.fixture(autouse=True)
def _kept():
    before = np.random.get_state()
    yield
    np.random.set_state(before)


@pytest.mark.parametrize("ahead", ["none", "normal", "uniform"])
@pytest.mark.parametrize("between", sorted(DRAWS))
@pytest.mark.parametrize("inside", sorted(DRAWS))
def test_a_pass_sees_the_frozen_state_and_leaves_the_other(ahead, between, inside):
    np.random.seed(1)
    DRAWS[ahead]()
    frozen, frozen_state = NumpyState(), state()
    DRAWS[between]()
    before = state()
    for _ in range(2):
        with frozen.restored():
            assert state() == frozen_state
            DRAWS[inside]()
        assert state() == before


def test_it_is_left_alone_after_an_exception():
    frozen, before = NumpyState(), state()
    with pytest.raises(ZeroDivisionError), frozen.restored():
        1 / (0 * np.random.random())
    assert state() == before


def test_another_kind_of_generator():
    old = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        frozen = NumpyState()
        first = np.random.random()
        with frozen.restored():
            assert np.random.random() == first
        np.random.random()
        with frozen.restored():
            assert np.random.random() == first
    finally:
        np.random.set_bit_generator(old)


def draws(loader):
    numbers = torch.rand(()), torch.rand((), generator=loader.generator)
    return [*map(float, numbers), random.random(), float(np.random.random())]


@pytest.fixture
def loader():
    before = torch.random.get_rng_state(), random.getstate()
    generator = torch.Generator().manual_seed(7)
    yield torch.utils.data.DataLoader([1, 2, 3], shuffle=True, generator=generator)
    torch.random.set_rng_state(before[0])
    random.setstate(before[1])


def test_every_pass_draws_the_same_from_all_generators(loader):
    frozen = FrozenRandomState(torch.device("cpu"), loader)
    first = draws(loader)
    before = torch.random.get_rng_state()
    for _ in range(2):
        with frozen.restored():
            assert draws(loader) == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert draws(loader) != first


def test_a_backward_pass_restores_the_generator_of_torch_alone(loader):
    frozen = FrozenRandomState(torch.device("cpu"), loader)
    first, second = draws(loader), draws(loader)
    with frozen.restored(backward=True):
        third = draws(loader)
    assert third[0] == first[0]
    assert all(x not in first + second for x in third[1:])


def test_autocast_is_frozen_and_can_be_left_out(loader):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frozen = FrozenRandomState(torch.device("cpu"), loader)
    plain = frozen.without_autocast()
    first = draws(loader)
    for state, enabled in ((frozen, True), (plain, False)):
        assert state.autocast is enabled
        with torch.autocast("cpu", enabled=not enabled), torch.inference_mode(), state.restored():
            assert torch.is_autocast_enabled("cpu") is enabled
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert draws(loader) == first
