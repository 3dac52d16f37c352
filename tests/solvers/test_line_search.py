"""The best point between a direction and a target, against a fine grid on both segments."""

from __future__ import annotations

import numpy as np
import pytest

from geodiag.solvers import iterate
from geodiag.solvers.line_search import toward
from tests import truth

N, MEMBERS = 6, 40


@pytest.mark.parametrize("spectrum", ["positive", "indefinite", "negative"])
def test_the_best_point_towards_any_target(spectrum, dtype):
    low, high = {"positive": (0.1, 2), "indefinite": (-2, 2), "negative": (-2, -0.1)}[spectrum]
    H = truth.symmetric(N, 0, np.linspace(low, high, N)).astype(dtype)
    rng = np.random.default_rng(1)
    ds, targets = rng.uniform(-1, 1, (2, MEMBERS, N)).astype(dtype)
    moved = toward(iterate.begin({"x": ds}, {"x": ds @ H}), {"x": targets}, {"x": targets @ H})

    tolerance = truth.tolerance(dtype, N) * 10
    found, t = moved.direction["x"], np.linspace(0, 1, 1001)[:, None]
    for k in range(MEMBERS):
        ends = [(1 - t) * ds[k] + t * side * targets[k] for side in (1, -1)]
        values = np.concatenate([np.einsum("ki,ij,kj->k", e, H, e) for e in ends])
        at = found[k] @ H @ found[k]
        assert moved.value[k] == pytest.approx(at, abs=tolerance)
        assert moved.image["x"][k] == pytest.approx(H @ found[k], abs=tolerance)
        assert at >= ds[k] @ H @ ds[k] - tolerance
        # The side is the one that the slope at d favours, where the best point need not lie.
        side = 0 if ds[k] @ H @ targets[k] >= 0 else 1
        assert at >= values[1001 * side : 1001 * (side + 1)].max() - tolerance
        between = [np.linalg.norm(found[k] - e, axis=1).min() for e in ends]
        assert min(between) < 2e-3 * np.linalg.norm(targets[k] - ds[k]) + 2e-3
