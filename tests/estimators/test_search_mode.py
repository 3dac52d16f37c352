"""How a search uses an earlier witness: the mode by its age, or as asked for; and warm starts.

Products are counted by the oracle of the tests. The truth for ages is the table of the docs.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import geodiag
from geodiag import Bound
from geodiag.errors import ArgumentError
from geodiag.estimators import Options, SearchMode
from geodiag.norms import L2, Linf, Spectral
from geodiag.results import WarmStart
from geodiag.sharpness import measured
from tests import truth
from tests.quadratic import Quadratic

N = 24
SHAPES = {"W": (4, 5), "b": (4,)}
H = truth.symmetric(N, 0, np.linspace(-1.0, 3.0, N))
PRODUCTS = {
    SearchMode.REFRESH: (2, 4),
    SearchMode.EXPLORATORY: (5, 10),
    SearchMode.COLD: (11, 20),
    SearchMode.DISTANT: (11, 30),
}


def test_the_mode_by_age():
    modes = [SearchMode.at_age(age) for age in (None, *range(25))]
    cold = [SearchMode.COLD]
    five = [SearchMode.REFRESH] * 4 + [SearchMode.EXPLORATORY]
    assert modes == cold + (3 * five + five[:4]) + 6 * cold
    assert Options(age=3, mode=SearchMode.COLD).search_mode is SearchMode.COLD
    assert Options(age=3).search_mode is SearchMode.REFRESH


@pytest.mark.parametrize("age", [0, 4, 19, 300])
@pytest.mark.parametrize("mode", SearchMode)
@pytest.mark.parametrize("norm", [Linf(), Spectral()], ids=repr)
def test_a_mode_that_is_asked_for_does_not_depend_on_the_age(norm, mode, age):
    known = geodiag.sharpness(Quadratic(H, SHAPES), norm)
    start = known.state | {"age": age}
    oracle = Quadratic(H, SHAPES)
    result = measured(oracle, norm, Options(mode=mode), start=start)
    least, most = PRODUCTS[mode]
    assert least <= oracle.asked <= most
    assert result.num_hvps == oracle.asked
    assert result.state["age"] == (0 if mode.cold else age + 1)
    assert result.value >= known.value * (1 - 1e-12)


@pytest.mark.parametrize("mode", SearchMode)
def test_a_cold_lanczos_search_is_exact(mode):
    H = truth.symmetric(150, 1, np.r_[np.linspace(-1.0, 1.0, 149), 2.0])
    known = geodiag.sharpness(Quadratic(H), "l2", rtol=1e-6)
    oracle = Quadratic(H)
    result = measured(oracle, L2(), Options(rtol=1e-4, mode=mode), start=known)
    assert result.value == pytest.approx(2.0, rel=1e-6)
    cold = mode.cold
    assert result.bound is (Bound.EXACT if cold else Bound.LOWER)
    assert oracle.asked > 8 if cold else oracle.asked <= 2


def test_a_warm_start_through_json():
    state = geodiag.sharpness(Quadratic(H, SHAPES), "linf").state
    warm = WarmStart.from_dict(state)
    assert warm.to_dict() == state
    assert (warm.age, warm.norm) == (0, "Linf()")
    read = WarmStart.from_dict(json.loads(json.dumps(warm.to_json())))
    assert read.to_json() == warm.to_json()
    for name, x in state["witness"].items():
        np.testing.assert_array_equal(read.witness[name], x)


GOOD = {"witness": {"x": [1.0]}, "age": 0, "norm": "L2()"}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"witness": {"x": [1.0]}, "age": 0},
        GOOD | {"more": 1},
        GOOD | {"age": -1},
        GOOD | {"age": 1.5},
        GOOD | {"norm": None},
        GOOD | {"witness": [1.0]},
        GOOD | {"witness": {1: [1.0]}},
        "a text",
    ],
    ids=repr,
)
def test_a_malformed_state(wrong):
    with pytest.raises(ArgumentError):
        WarmStart.from_dict(wrong)
