"""``SharpnessResult.loss`` is L(w), in every estimator and framework, warm and after a failure."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import geodiag
from geodiag import Monitor, Status, estimators
from geodiag.oracles import CallablesProblem

A = np.random.default_rng(0).standard_normal((140, 140)) / 12
X = np.random.default_rng(1).standard_normal(140)
LOSS = float(np.sum(np.logaddexp(0, A @ X)))


def in_numpy(x=X):
    def loss(w):
        return np.sum(np.logaddexp(0, A @ w["x"]))

    def gradient(w):
        return {"x": A.T @ (1 / (1 + np.exp(-A @ w["x"])))}

    return CallablesProblem(loss, gradient, {"x": x})


def in_jax():
    def loss(params, a):
        return jnp.sum(jnp.logaddexp(0, a @ params["x"]))

    return {"model": loss, "params": {"x": jnp.asarray(X)}, "data": [(jnp.asarray(A),)]}


def in_torch():
    model = torch.nn.Linear(140, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(X))
    batch = [(torch.as_tensor(A), torch.zeros(140))]
    return {
        "model": model,
        "criterion": lambda out, y: torch.nn.functional.softplus(out).sum() + y.sum(),
        "data": batch,
    }


@pytest.mark.parametrize("norm", ["l2", "linf", "block"])
@pytest.mark.parametrize("make", [lambda: {"model": in_numpy()}, in_jax, in_torch])
def test_in_every_framework_cold_and_warm(make, norm):
    arguments = make()
    cold = geodiag.sharpness(norm=norm, **arguments)
    warm = geodiag.sharpness(norm=norm, start=cold, rtol=1e-3, **arguments)
    assert cold.loss == pytest.approx(LOSS, rel=1e-12)
    assert warm.loss == pytest.approx(LOSS, rel=1e-12)


@pytest.mark.parametrize("kind", [estimators.Ascent, estimators.FrankWolfe, estimators.Lanczos])
def test_of_every_estimator(kind):
    result = geodiag.sharpness(in_numpy(), "l2", estimator=kind(), max_hvps=20)
    assert result.loss == pytest.approx(LOSS, rel=1e-12)


def test_enumerated_and_with_a_certificate():
    H = np.diag([2.0, 1.0])
    at = geodiag.problem(H).at({"x": np.array([1.0, 2.0])})
    for certificate in (False, True):
        assert geodiag.sharpness(at, "linf", certificate=certificate).loss == 3.0


def test_after_a_failure():
    """The loss is finite, its gradient is not."""
    problem = CallablesProblem(
        lambda w: np.sum(w["x"]), lambda w: {"x": w["x"] * np.nan}, {"x": np.ones(3)}
    )
    result = geodiag.sharpness(problem, throw=False)
    assert (result.status, result.loss) == (Status.NON_FINITE, 3.0)


def test_of_a_power_step(monkeypatch):
    results = []
    tracker = geodiag.monitoring.sharpness_tracker.SharpnessTracker
    measure = tracker.measure

    def kept(self, *arguments):
        results.append(measure(self, *arguments))
        return results[-1]

    monkeypatch.setattr(tracker, "measure", kept)
    monitor = Monitor(in_numpy(), "linf", lr=0.1, every=1)
    for step in range(3):
        monitor.observe(step, {"x": X}, {"x": X + 1e-3})
    assert "PowerStep()" in {result.estimator for result in results}
    assert [result.loss for result in results] == pytest.approx([LOSS] * 3, rel=1e-12)
