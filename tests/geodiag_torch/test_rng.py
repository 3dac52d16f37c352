"""NumPy's global generator in a pass: the same draws in each, and none of them left behind."""

from __future__ import annotations

import numpy as np
import pytest

from geodiag_torch.state.rng import NumpyState

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
