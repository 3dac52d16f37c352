"""Steps and rules of which something cannot be known: one sentence each, and nothing else is lost.

What only the run can show is NaN in a record, with its reason; the measured loss and S stay.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import geodiag
import geodiag_jax
from geodiag import errors
from geodiag_torch import attach

H = np.diag([4.0, 1.0])
W, NEW = {"x": np.array([1.0, 2.0])}, {"x": np.array([0.6, 1.8])}  # w and w − 0.1 Hw
UNSTABLE, NO_GAIN = ((1.0,), (1.0, -1.0)), ((1.0, -1.0), (1.0,))
SGD, mse = torch.optim.SGD, nn.functional.mse_loss


def regression():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    return model, (torch.randn(8, 3).double(), torch.randn(8, 1).double())


def stepped(model, data, *optimizers):
    for each in optimizers:
        each.zero_grad()
    mse(model(data[0]), data[1]).backward()
    for each in optimizers:
        each.step()


@pytest.mark.parametrize(
    ("filter", "said"), [(UNSTABLE, "filter= is unstable"), (NO_GAIN, "does not descend")]
)
def test_a_filter_that_is_none(filter, said):
    rule = geodiag.Update(0.1, filter=filter)
    model, data = regression()
    makers = (
        lambda: geodiag.Monitor(H, update=rule),
        lambda: geodiag_jax.Monitor(jnp.sum, "l2", update=rule),
        lambda: attach(SGD(model.parameters(), 0.1), model, criterion=mse, data=data, update=rule),
    )
    for make in makers:
        with pytest.raises(errors.ArgumentError, match=said):
            make()
    record = geodiag.Monitor(H, update=lambda step: rule, every=1).observe(0, W, NEW)
    assert said in record.note
    assert (record.sharpness, record.loss) == (pytest.approx(4.0), 4.0)
    assert math.isnan(record.threshold)
    assert 0 < record.realized_edge < 1


def jax_record(loss, **options):
    monitor = geodiag_jax.Monitor(loss, "l2", lr=0.1, every=1, sharpness=False, **options)
    return monitor.observe(0, {"x": jnp.ones(2)}, {"x": jnp.zeros(2)})


def test_a_loss_that_is_nan_after_the_step():
    pair = (
        lambda w: w["x"] @ H @ w["x"] / 2 if w["x"][0] > 0.7 else math.nan,
        lambda w: {"x": H @ w["x"]},
    )
    for sharpness in (True, False):
        options = {"lr": 0.1, "every": 1, "critical": True, "sharpness": sharpness}
        record = geodiag.Monitor(pair, params=W, **options).observe(0, W, NEW)
        assert record.loss == 4.0
        assert record.sharpness == pytest.approx(4.0 if sharpness else math.nan, nan_ok=True)
        assert math.isnan(record.realized_edge)
        assert math.isnan(record.directional_smoothness)
        assert "not finite" in record.note
        assert record.critical_lr == pytest.approx(0.075, rel=1 / 16)  # to where it is NaN
    record = jax_record(lambda p: jnp.where(p["x"][0] > 0.5, jnp.sum(p["x"] ** 2), jnp.nan))
    assert record.loss == 2.0
    assert "not finite" in record.note
    assert math.isnan(record.realized_edge)


def test_a_gradient_that_is_nan_is_not_clipped():
    record = jax_record(lambda p: jnp.sum(jnp.sqrt(p["x"] - 1.0)), clip_norm=0.1)
    assert math.isnan(record.realized_edge)
    assert math.isnan(record.threshold)
    assert "what clip_norm= makes of a gradient that is not finite is not known" in record.note


def test_a_step_that_does_not_descend_or_brackets_nothing():
    up = geodiag.Monitor(H, lr=0.1, every=1, critical=True).observe(0, NEW, W)
    assert "no ζ: the step does not descend" in up.note
    assert math.isnan(up.realized_edge)
    assert math.isnan(up.critical_lr)
    record = jax_record(lambda p: jnp.sum(p["x"]), critical=True)
    assert "no critical step: no bracket in 12 losses" in record.note
    assert record.realized_edge == pytest.approx(0.0, abs=1e-6)


def test_optimizers_that_come_to_share_a_parameter_or_to_hold_none():
    model, data = regression()
    first, second = SGD(model[0].parameters(), 0.1), SGD(model[1].parameters(), 0.1)
    monitor = attach([first, second], model, criterion=mse, data=data, every=1)
    stepped(model, data, first, second)
    second.param_groups[0]["params"].append(model[0].weight)
    stepped(model, data, first, second)
    second.param_groups[0]["params"][:] = [nn.Parameter(torch.zeros(1))]
    stepped(model, data, first, second)
    second.param_groups[0]["params"][:] = list(model[1].parameters())
    stepped(model, data, first, second)
    right, shared, gone, again = monitor.records
    assert math.isfinite(right.ratio)
    assert "hold the same parameter" in shared.note
    assert "holds no parameter of the model" in gone.note
    assert math.isnan(shared.sharpness)
    assert math.isnan(gone.sharpness)
    assert math.isfinite(again.ratio)
    with pytest.raises(errors.ParameterError, match="holds none of the parameters"):
        attach(SGD(nn.Linear(1, 1).parameters(), 0.1), model, criterion=mse, data=data)
