"""Searches for the critical step along a run that is far from the edge, where no quadratic reaches.

The truth is the first crossing of the loss along the step, on a fine grid in float64.
"""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest

import geodiag
from geodiag.errors import ArgumentError
from geodiag.monitoring.critical_step import CriticalSteps

X = np.random.default_rng(0).standard_normal((40, 3))
X[:, 0] += 2.0  # all but separable
LR, STEPS, EVERY = 0.02, 121, 10


def loss(w):
    """Logistic, with a weak fourth power: ζ of 0.002, and critical steps of hundreds of steps."""
    return float(np.mean(np.logaddexp(0.0, -X @ w["x"])) + 1e-4 * np.sum(w["x"] ** 4))


def gradient(w):
    weights = 1 / (1 + np.exp(X @ w["x"]))
    return {"x": -(weights @ X) / len(X) + 4e-4 * w["x"] ** 3}


def monitored(lr=LR):
    return geodiag.Monitor(
        (loss, gradient), params={"x": np.zeros(3)}, lr=lr, every=EVERY, sharpness=False,
        critical=True,
    )  # fmt: skip


def run(monitor, w, steps):
    for step in steps:
        new = w - LR * gradient({"x": w})["x"]
        monitor.observe(step, {"x": w}, {"x": new})
        w = new
    return w


def crossing(w):
    s = -LR * gradient({"x": w})["x"]
    alphas = np.geomspace(1.0, 1e5, 600)
    return alphas[np.argmax([loss({"x": w + a * s}) > loss({"x": w}) for a in alphas])]


def test_a_search_begins_where_the_last_one_ended(monkeypatch):
    found, search = [], CriticalSteps.search
    monkeypatch.setattr(
        CriticalSteps, "search", lambda *args: found.append(search(*args)) or found[-1]
    )
    monitor, w = monitored(), np.zeros(3)
    for step in range(0, STEPS, EVERY):
        truth = crossing(w)
        w = run(monitor, w, range(step, step + EVERY))
        lo, hi = (end / LR for end in found[-1].bracket)
        assert lo < 1.02 * truth
        assert 0.98 * truth < hi
        assert hi <= lo ** (17 / 16) * (1 + 1e-9)  # in steps, where it is far
        assert found[-1].factor > 50
    counts = [each.num_losses for each in found]
    assert statistics.median(counts) <= 3
    assert statistics.median(counts) < counts[0]


def test_a_resumed_run_goes_on_as_it_would_have():
    whole, parts = monitored(), [monitored(), monitored()]
    w = run(whole, np.zeros(3), range(41))
    v = run(parts[0], np.zeros(3), range(21))
    parts[1].load_state_dict(json.loads(json.dumps(parts[0].state_dict())))
    assert np.array_equal(run(parts[1], v, range(21, 41)), w)
    records = [r.critical_lr for part in parts for r in part.records]
    assert records == [r.critical_lr for r in whole.records]
    state = parts[0].state_dict()
    for wrong in ({"found": [-1.0]}, {"found": [1.0], "of_rates": True, "rate": 0.0}, [1]):
        with pytest.raises(ArgumentError, match="not the state of a Monitor"):
            parts[1].load_state_dict(state | {"critical": wrong})
    parts[1].load_state_dict({k: x for k, x in state.items() if k != "critical"})  # an earlier one
