"""FrankWolfe against the paper's iteration, written out straight in NumPy (arXiv 2603.05002)."""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from geodiag import estimators
from geodiag.errors import ArgumentError
from tests import truth


def paper(H, start, lmo, value, iterations):
    """The paper's iteration, straight: d ← (1 − γ)d + γ·lmo(Hd), γ = 2/(k + 2)."""
    d = start / value(start)
    for k in range(iterations):
        gamma = 2.0 / (k + 2.0)
        d = (1 - gamma) * d + gamma * lmo(H @ d)
    d = d / value(d)
    return d @ H @ d, d


def polar(g):
    U, _, Vt = np.linalg.svd(g.reshape(3, 4), full_matrices=False)
    return (U @ Vt).ravel()


@pytest.mark.parametrize(
    ("name", "lmo", "value"),
    [
        ("linf", np.sign, lambda d: np.abs(d).max()),
        ("spectral", polar, lambda d: np.linalg.norm(d.reshape(3, 4), 2)),
        ("l2", lambda g: g / np.linalg.norm(g), np.linalg.norm),
    ],
    ids=["linf", "spectral", "l2"],
)
@pytest.mark.parametrize("iterations", [1, 2, 7, 50])
def test_frank_wolfe_is_the_papers_iteration(name, lmo, value, iterations):
    H = truth.symmetric(12, 4)
    start = np.random.default_rng(5).standard_normal((3, 4))
    expected, d = paper(H, start.ravel(), lmo, value, iterations)
    result = geodiag.sharpness(
        H,
        name,
        shapes={"W": (3, 4)},
        start={"W": start},
        estimator=estimators.FrankWolfe(iterations, restarts=1),
    )
    # The same operations in another order: rounding grows by a few ε per iteration.
    assert result.value == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(result.direction["W"].ravel(), d, atol=1e-10)
    assert result.num_hvps == iterations + 2


def test_frank_wolfe_restarts_keep_the_best():
    H = truth.symmetric(12, 6)
    rng = np.random.default_rng(0)  # the library's seed and draws, in name order
    runs = [
        paper(H, rng.standard_normal(12), np.sign, lambda d: np.abs(d).max(), 20)[0]
        for _ in range(4)
    ]
    result = geodiag.sharpness(H, "linf", estimator=estimators.FrankWolfe(20, restarts=4))
    np.testing.assert_allclose(result.history, runs, rtol=1e-10)
    assert result.value == pytest.approx(max(runs), rel=1e-10)
    assert result.spread == pytest.approx((max(runs) - min(runs)) / max(runs), rel=1e-9)


@pytest.mark.parametrize("arguments", [{"iterations": 0}, {"restarts": 0}])
def test_frank_wolfe_needs_work_to_do(arguments):
    with pytest.raises(ArgumentError, match="at least one iteration and one restart"):
        estimators.FrankWolfe(**arguments)


@pytest.mark.parametrize("name", ["linf", "l1", "l2", "spectral"])
def test_a_start_in_the_null_space_stays_where_it_is(name):
    """Where Hd = 0, lmo(Hd) may be 0, which has no direction."""
    H = np.diag([0.0, 0.0, 2.0, 3.0])
    start = {"W": np.array([[1.0, -1.0], [0.0, 0.0]])}
    result = geodiag.sharpness(
        H,
        name,
        shapes={"W": (2, 2)},
        start=start,
        estimator=estimators.FrankWolfe(iterations=5, restarts=1),
    )
    size = truth.NORMS[name][0](result.direction)
    assert size == pytest.approx(1.0, rel=1e-14)
    assert 0.0 <= result.value <= 5.0  # tr H = 5 is the largest over all of these balls
