"""A larger budget gives neither a looser bound nor a worse value, but for noise.

The truth of sums of ℓ2 norms at H ⪰ 0 is the largest eigenvalue of a diagonal block, by LAPACK; of
ℓ∞ all faces of the cube; of others no value may exceed any upper bound.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import geodiag
from geodiag.norms import L2, ByParameter, L2Over, Linf, MaxOver, Scaled, Spectral, SumOver
from tests.truth import cube_faces, symmetric

SHAPES = {"a": (2, 3), "b": (7,), "c": (3, 3)}
BUDGETS = (12, 16, 20, 40, 80, 250)
# A search that ends at another local maximum, and a bound whose few steps fall otherwise.
SLACK = {"value": 0.75, "upper": 1.35}
NORMS = {
    "block": "block",
    "nuclear": "nuclear",
    "linf": "linf",
    "spectral": "spectral",
    "a scaled sum": Scaled(SumOver(L2()), 3.0),
    "a sum with radii": SumOver(L2(), radii={"a": 0.5, "b": 2.0, "c": 1.0}),
    "a scaled maximum": Scaled(Linf(), 0.2),
    "a maximum": MaxOver(L2()),
    "an l2 of sums": L2Over(Spectral()),
    "mixed": ByParameter({"a": Spectral(), "b": Linf(), ".*": L2()}),
}


def matrices():
    n = 22
    yield "positive", symmetric(n, 0, np.linspace(0.0, 1.0, n) ** 3)
    yield "indefinite", symmetric(n, 1)


def blocks_top(H):
    ends = np.cumsum([0, 6, 7, 9])
    return max(np.linalg.eigvalsh(H[a:b, a:b])[-1] for a, b in pairwise(ends))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("spectrum", ["positive", "indefinite"])
def test_more_products_are_not_worse(name, spectrum):
    H = dict(matrices())[spectrum]
    values, uppers = [], []
    for budget in BUDGETS:
        result = geodiag.sharpness(H, NORMS[name], shapes=SHAPES, certificate=True, max_hvps=budget)
        assert result.num_hvps <= budget
        values.append(result.value)
        uppers.append(result.upper)
    best, tightest = np.maximum.accumulate(values), np.minimum.accumulate(uppers)
    assert np.all(values >= SLACK["value"] * best), (name, values)
    assert np.all(uppers <= SLACK["upper"] * tightest), (name, uppers)
    assert max(values) <= min(uppers) * (1 + 1e-9)
    truth = {"block": 1.0, "a scaled sum": 9.0}.get(name)
    if truth and spectrum == "positive":
        S = blocks_top(H) / truth
        assert min(values) >= 0.9 * S
        assert max(values) <= S * (1 + 1e-9)
        assert min(uppers) * (1 + 1e-9) >= S
        assert uppers[BUDGETS.index(40)] <= 3 * S
        assert uppers[-1] <= 1.01 * S


@pytest.mark.parametrize("name", ["block", "nuclear", "linf", "spectral"])
def test_values_without_a_certificate(name):
    for _, H in matrices():
        values = [
            geodiag.sharpness(H, name, shapes=SHAPES, max_hvps=budget).value
            for budget in (5, 6, 8, 10, *BUDGETS)
        ]
        assert np.all(values >= 0.7 * np.maximum.accumulate(values)), values


@pytest.mark.parametrize("spectrum", ["positive", "indefinite"])
def test_against_every_face_of_the_cube(spectrum):
    n = 8
    H = symmetric(n, 3, np.linspace(0.0, 1.0, n) if spectrum == "positive" else None)
    S = cube_faces(H)
    estimator = geodiag.estimators.Ascent()
    for budget in BUDGETS:
        result = geodiag.sharpness(
            H, "linf", certificate=True, max_hvps=budget, estimator=estimator
        )
        assert result.value <= S * (1 + 1e-9)
        assert result.upper * (1 + 1e-9) >= S
