"""No eigenvalue is claimed of differences of a gradient whose Jacobian is not symmetric.

Truth is the Jacobian itself, written by hand: of a rotation field, of a game (one player's gradient
reversed), and of a semi-gradient J = A + B with A symmetric and B not.
"""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from geodiag.errors import LossError
from geodiag.oracles import asymmetry

RNG = np.random.default_rng(0)
N = 6
A = RNG.standard_normal((N, N))
A = A @ A.T
W = RNG.standard_normal(N)


def pair(J, dtype="float64"):
    J = J.astype(dtype)

    def loss(w):
        return np.sum(w["x"] * (J @ w["x"])) / 2

    return (loss, lambda w: {"x": J @ w["x"]}), {"x": W.astype(dtype)}


ROTATION = np.kron(np.eye(3), np.array([[1.0, -1.0], [1.0, 1.0]]))
REVERSED = np.diag([-1.0] * 3 + [1.0] * 3) @ A
SEMI = A + 0.05 * np.abs(A).max() * RNG.standard_normal((N, N))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("J", [ROTATION, REVERSED, SEMI], ids=["rotation", "game", "semi-gradient"])
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_a_field_that_is_no_gradient_is_refused(J, norm, dtype):
    callables, params = pair(J, dtype)
    problem = geodiag.problem(callables, params=params)
    for _ in range(2):  # also when it is asked again
        with pytest.raises(LossError, match="not symmetric, so S is not defined"):
            geodiag.sharpness(problem, norm)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_monitor_records_nan_and_says_why(norm):
    callables, params = pair(REVERSED)
    with geodiag.Monitor(geodiag.problem(callables, params=params), norm, every=1) as monitor:
        moved = {"x": W - 0.01 * REVERSED @ W}
        monitor.observe(0, params, moved)
    record = monitor.records[0]
    assert np.isnan(record.sharpness)
    assert "not symmetric" in record.note


def rough(w):
    """Σ|Aw| + Σ max(Aw, 0)², with kinks everywhere."""
    z = A.astype(w["x"].dtype) @ w["x"]
    return np.sum(np.abs(z)) + np.sum(np.maximum(z, 0) ** 2)


def rough_gradient(w):
    B = A.astype(w["x"].dtype)
    z = B @ w["x"]
    return {"x": B.T @ (np.sign(z) + 2 * np.maximum(z, 0))}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_false_alarms(dtype):
    rng = np.random.default_rng(1)
    quartic = (lambda w: np.sum(w["x"] ** 4), lambda w: {"x": 4 * w["x"] ** 3})
    for seed in range(20):
        for callables in (quartic, (rough, rough_gradient)):
            params = {"x": rng.standard_normal(N).astype(dtype) * 10.0 ** (seed % 5 - 2)}
            oracle = geodiag.problem(callables, params=params).at()
            assert asymmetry(oracle, float(np.finfo(dtype).eps)) is None


def test_the_check_is_made_once_for_a_problem():
    (loss, gradient), params = pair(A)
    calls = []

    def counted(w):
        calls.append(1)
        return gradient(w)

    problem = geodiag.problem((loss, counted), params=params)
    counts = []
    for _ in range(2):
        before = len(calls)
        problem.at().hvp({"x": np.ones(N)})
        counts.append(len(calls) - before)
    assert counts == [2 + 4 + 1, 2]  # two products and the gradient more, the first time
