"""``start=`` from a distant point: another search follows, and a note says so.

The truth is closed: eigenvalues, or (Σ|a|)² of H = Σ cₖ aₖaₖᵀ with orthogonal sign vectors.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import geodiag
from geodiag import norms
from geodiag.results import Searched, WarmStart
from tests import truth
from tests.quadratic import Quadratic

N = 64
OLD = {"witness", "age", "norm"}


class At(Quadratic):
    """With a loss of its own."""

    def __init__(self, H, loss=1.0, shapes=None):
        super().__init__(H, shapes)
        self._loss = loss

    def loss(self):
        return self.space.asarray(self._loss)


def distant(result):
    return any("distant point" in note for note in result.notes)


def crossing(n, first, second):
    """Two top eigenvalues over a bulk, in a turned basis; an eigenvector is never an axis."""
    return truth.symmetric(n, 4, np.r_[np.linspace(-1.0, 1.0, n - 2), first, second])


@pytest.mark.parametrize("rtol", [None, 0.02, 1e-4])
@pytest.mark.parametrize("n", [24, 200])
@pytest.mark.parametrize("norm", ["l2", "preconditioned"])
def test_eigenvalues_that_cross(norm, n, rtol):
    P = np.full(n, 2.0)
    made = norms.Preconditioned({"x": P}) if norm == "preconditioned" else norms.L2()
    size = 2.0 if norm == "preconditioned" else 1.0
    before = geodiag.sharpness(Quadratic(crossing(n, 4.0, 2.0)), made, rtol=rtol)
    assert before.value == pytest.approx(4.0 / size, rel=1e-3)
    result = geodiag.sharpness(Quadratic(crossing(n, 2.0, 4.0)), made, start=before, rtol=rtol)
    assert result.value == pytest.approx(4.0 / size, rel=1e-3)
    assert distant(result) is (rtol is not None)  # without rtol it is as good as a cold one


@pytest.mark.parametrize("how", ["result", "json"])
@pytest.mark.parametrize("change", ["fall", "rise", "loss"])
@pytest.mark.parametrize("norm", ["linf", "spectral"])
def test_maxima_that_cross(norm, change, how):
    """S at the old witness halves, doubles, or stays while the loss falls."""
    shapes = {"W": (8, 8)}
    a, b = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0], np.eye(8)
    a = a - b * np.sum(a * b) / 8
    a, b = (np.ones(N), np.resize([1.0, -1.0], N)) if norm == "linf" else (a.ravel(), b.ravel())
    size = {"linf": lambda x: np.abs(x).sum(), "spectral": nuclear}[norm]

    def hessian(first, second):
        return np.outer(a, a) * first / size(a) ** 2 + np.outer(b, b) * second / size(b) ** 2

    before = geodiag.sharpness(At(hessian(4.0, 1.0), 1.0, shapes), norm)
    assert before.value == pytest.approx(4.0, rel=0.02)
    first, loss = {"fall": (2.0, 1.0), "rise": (8.0, 1.0), "loss": (4.0, 0.5)}[change]
    start = json.loads(json.dumps(WarmStart.from_dict(before.state).to_json()))
    start = before if how == "result" else start
    result = geodiag.sharpness(At(hessian(first, 16.0), loss, shapes), norm, start=start)
    assert result.value >= 0.97 * 16.0
    assert distant(result)
    assert result.num_hvps <= 3 + 30 + 1
    near = geodiag.sharpness(At(hessian(4.05, 1.0), 1.02, shapes), norm, start=before)
    assert near.num_hvps <= 4
    assert not distant(near)


def nuclear(x):
    return np.linalg.norm(x.reshape(8, 8), "nuc")


def test_a_state_of_an_older_version_is_read():
    state = geodiag.sharpness(At(np.eye(N)), "linf").state
    assert set(state) == OLD | {"found", "loss", "cold_loss"}
    old = {name: state[name] for name in OLD}
    result = geodiag.sharpness(At(3 * np.eye(N)), "linf", start=old)
    assert result.num_hvps <= 3
    assert not distant(result)
    assert WarmStart.from_dict(old).to_dict() == old


def test_the_state_tells_of_the_last_search_and_not_of_refreshes():
    result = geodiag.sharpness(At(np.eye(N)), "linf")
    for step in range(1, 4):
        result = geodiag.sharpness(At((1 + 0.02 * step) * np.eye(N)), "linf", start=result)
        assert result.state["found"] == pytest.approx(N)
    result = geodiag.sharpness(At(1.2 * np.eye(N)), "linf", start=result)
    assert result.state["found"] == pytest.approx(1.2 * N)


def test_a_loss_that_falls_slowly_brings_a_cold_search():
    """Exploratory searches on the way do not hide how far the last cold one is."""
    result, lengths = geodiag.sharpness(At(np.eye(N)), "linf"), []
    for step in range(1, 9):
        result = geodiag.sharpness(At(np.eye(N), loss=0.97**step), "linf", start=result)
        lengths.append(result.num_hvps)
        assert result.state["cold_loss"] == (1.0 if step < 7 else 0.97**7)
    assert lengths[6] > max(lengths[:6])
    assert lengths[7] <= 3
    assert result.state["loss"] == result.state["cold_loss"]


def test_a_budget_is_kept_where_the_point_is_distant():
    a, b = np.ones(N), np.resize([1.0, -1.0], N)
    before = geodiag.sharpness(At(np.outer(a, a)), "linf")
    oracle = At(0.3 * np.outer(a, a) + 2 * np.outer(b, b))
    result = geodiag.sharpness(oracle, "linf", start=before, max_hvps=40)
    assert oracle.asked == result.num_hvps <= 40
    assert result.value == pytest.approx(2.0 * N**2)
    assert distant(result)


def test_factors():
    searched = Searched(2.0, -4.0)
    assert searched.value_change(1.0, 3.0) == 2.0
    assert searched.value_change(-1.0) == np.inf
    assert Searched(-1.0).value_change(-5.0) == 1.0
    assert searched.loss_change(-5.0) == 1.25
    assert searched.loss_change(5.0) == 1.0
    assert Searched().value_change(1.0) == Searched().loss_change(1.0) == 1.0
    assert searched.value_change(np.nan) == 1.0
