"""A monitor on an optimizer: it sees what really happened, and changes nothing.

The truth about a step is a linear regression with its dense Hessian, and NumPy's arithmetic.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
from geodiag import errors
from geodiag_torch import attach
from tests.geodiag_torch.models import mlp, regression

mse = nn.functional.mse_loss


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().copy()


def train(optimizer, model, data, steps):
    x, y = data
    for _ in range(steps):
        optimizer.zero_grad()
        mse(model(x), y).backward()
        optimizer.step()


def attached(make=torch.optim.SGD, **arguments):
    """(monitor, optimizer, model, data), for a linear regression."""
    model, data, _ = regression()
    optimizer = make(model.parameters(), lr=0.1)
    given = {"criterion": mse, "data": data, "every": 1} | arguments
    return attach(optimizer, model, **given), optimizer, model, data


def test_every_record_is_what_happened():
    model, data, h = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    monitor = attach(optimizer, model, criterion=mse, data=data, every=2, rtol=1e-6)
    points, losses, gradients = [flat(model)], [], []
    for _ in range(6):
        optimizer.zero_grad()
        loss = mse(model(data[0]), data[1])
        loss.backward()
        losses.append(loss.item())
        gradients.append(np.concatenate([p.grad.numpy().ravel() for p in model.parameters()]))
        optimizer.step()
        schedule.step()
        points.append(flat(model))
    top = np.linalg.eigvalsh(h)[-1]
    assert [r.step for r in monitor.records] == [0, 2, 4]
    for r in monitor.records:
        s = points[r.step + 1] - points[r.step]
        assert r.loss == pytest.approx(losses[r.step])
        assert r.lr == pytest.approx(0.5 * 0.9**r.step)
        assert r.sharpness == pytest.approx(top)
        assert r.threshold == pytest.approx(2 / r.lr)
        assert r.ratio == pytest.approx(top * r.lr / 2)
        assert r.dual_norm == pytest.approx(np.linalg.norm(gradients[r.step]))
        assert r.directional_smoothness == pytest.approx(s @ h @ s / (s @ s), rel=1e-6)
        assert r.curvature == pytest.approx(s @ h @ s / (s @ s))
        assert r.note == ""
    assert monitor.steps == 6


def test_it_lives_as_long_as_the_optimizer_and_no_longer(tmp_path):
    monitor, optimizer, model, data = attached(log=tmp_path / "run.jsonl")
    seen = weakref.ref(monitor)
    del monitor
    gc.collect()
    train(optimizer, model, data, 3)
    assert len(geodiag.read_records(tmp_path / "run.jsonl")) == 3  # each written at once
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(optimizer)
        del optimizer
        assert gone() is None  # by its references alone: the hooks make no cycle
        assert seen() is None
    finally:
        gc.enable()


def test_a_kept_monitor_does_not_keep_the_optimizer():
    closed = []

    class Sink(geodiag.sinks.Sink):
        def write(self, record):
            pass

        def close(self):
            closed.append(True)

    monitor, optimizer, model, data = attached(log=Sink())
    train(optimizer, model, data, 2)
    gone = weakref.ref(optimizer)
    del optimizer
    assert gone() is None
    assert closed == [True]
    assert len(monitor.records) == 2


def test_a_model_that_holds_its_optimizer_is_freed_with_it():
    monitor, optimizer, model, data = attached()
    model.optimizer = optimizer  # as a Lightning module does, through its trainer
    train(optimizer, model, data, 1)
    gone = weakref.ref(optimizer)
    del monitor, optimizer, model
    gc.collect()
    assert gone() is None


def test_detach_takes_everything_back():
    monitor, optimizer, model, data = attached()
    other = optimizer.register_step_pre_hook(lambda *_: None)
    train(optimizer, model, data, 1)
    monitor.detach()
    monitor.detach()
    train(optimizer, model, data, 2)
    assert len(monitor.records) == 1
    assert list(optimizer._optimizer_step_pre_hooks) == [other.id]
    with attached()[0] as monitor:
        pass
    assert not monitor.due(0)


def test_a_copy_of_the_optimizer_has_no_monitor():
    monitor, optimizer, model, data = attached()
    for twin in (copy.deepcopy(optimizer), copy.copy(optimizer)):
        assert not twin._optimizer_step_pre_hooks
    train(optimizer, model, data, 1)
    assert len(monitor.records) == 1


def test_the_optimizers_parameters_are_measured():
    model, data = mlp()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    monitor = attach(optimizer, model, criterion=mse, data=data, rtol=1e-6)
    train(optimizer, model, data, 1)
    last = geodiag.sharpness(model, where="^2", criterion=mse, data=data, rtol=1e-6)
    assert monitor.records[0].sharpness == pytest.approx(float(last), rel=0.2)
    for where in (r"weight$", ["0.weight", "weight"], lambda name, p: p.dim() == 2):
        one = attach(optimizer, model, criterion=mse, data=data, where=where, log=None)
        assert set(one._problem.space.names) == {"2.weight"}


def test_two_monitors_on_one_optimizer():
    first, optimizer, model, data = attached()
    second = attach(optimizer, model, "linf", criterion=mse, data=data, every=2)
    train(optimizer, model, data, 3)
    assert [r.step for r in first.records] == [0, 1, 2]
    assert [r.step for r in second.records] == [0, 2]
    assert math.isnan(second.records[0].ratio)
    assert "not the geometry of SGD" in second.records[0].note
    assert second.records[0].sharpness >= 11 * first.records[0].sharpness * 0.05


def test_a_second_monitor_of_the_same_is_noticed():
    """As where a notebook's cell is run again; other norms or data are meant."""
    first, optimizer, model, (x, y) = attached()
    attach(optimizer, model, "linf", criterion=mse, data=(x, y))
    attach(optimizer, model, criterion=mse, data=(x, y.clone()))
    attach(optimizer, model, criterion=mse, data=(x, y), where="weight")
    attach(optimizer, model, loss_fn=lambda m, b: mse(m(b[0]), b[1]), data=(x, y))
    attach(optimizer, model, criterion=mse, data=(x, y), sharpness=False)
    for name in ("weight", "bias"):
        attach(optimizer, model, criterion=mse, data=(x, y), where=lambda n, p, k=name: k in n)
        attach(optimizer, model, criterion=mse, data=(x, y), where=lambda n, p: name in n)  # noqa: B023
    with pytest.warns(RuntimeWarning, match="has a monitor already that measures the same"):
        attach(optimizer, model, criterion=mse, data=(x, y)).detach()
    first.detach()
    attach(optimizer, model, criterion=mse, data=(x, y))


def test_it_counts_and_resumes():
    monitor, optimizer, model, data = attached(every=3)
    train(optimizer, model, data, 5)
    state = json.loads(json.dumps(monitor.state_dict()))
    monitor.detach()
    again = attach(optimizer, model, criterion=mse, data=data, every=3)
    again.load_state_dict(state)
    assert again.steps == 5
    train(optimizer, model, data, 3)
    assert [r.step for r in again.records] == [6]
    assert again.records[0].num_hvps < monitor.records[0].num_hvps  # warm
    for bad in ({}, {"steps": 1}, [], state | {"steps": "x"}):
        with pytest.raises(errors.ArgumentError, match=r"not the state|whole number"):
            again.load_state_dict(bad)
    assert again.steps == 8


def test_a_step_that_raises():
    monitor, optimizer, model, data = attached()

    def broken():
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        optimizer.step(broken)
    assert monitor.steps == 0
    train(optimizer, model, data, 1)
    first, second = monitor.records
    assert (first.step, second.step) == (0, 0)
    assert "not observed" in first.note
    assert math.isfinite(first.sharpness)
    assert math.isfinite(second.directional_smoothness)


@pytest.mark.parametrize("failing", ["loss", "norm", "update", "sink"])
def test_what_fails_does_not_reach_the_training(failing, capsys):
    broken = []

    def fail(*arguments):
        if failing == "loss" and not broken:
            return mse(*arguments)
        raise RuntimeError(f"a broken {failing}")

    arguments = {
        "loss": {"criterion": fail},
        "norm": {"norm": fail},
        "update": {"update": fail},
        "sink": {"log": fail},
    }[failing]
    monitor, optimizer, model, data = attached(**arguments)
    broken.append(True)
    train(optimizer, model, data, 2)
    assert [r.step for r in monitor.records] == [0, 1]
    said = [r.note for r in monitor.records] if failing != "sink" else [capsys.readouterr().err]
    assert all(f"a broken {failing}" in text for text in said)


def test_a_diverging_run_goes_on():
    monitor, optimizer, model, data = attached()
    optimizer.param_groups[0]["lr"] = 1e200
    train(optimizer, model, data, 4)
    assert len(monitor.records) == 4
    assert "finite" in monitor.records[-1].note


def test_a_norm_of_the_users_own_that_changes():
    scale = [1.0]
    monitor, optimizer, model, data = attached(
        norm=lambda: geodiag.norms.Scaled(geodiag.norms.L2(), scale[0]), rtol=1e-6
    )
    train(optimizer, model, data, 1)
    scale[0] = 2.0
    train(optimizer, model, data, 1)
    first, second = monitor.records
    assert second.sharpness == pytest.approx(first.sharpness / 4)
    assert math.isfinite(first.ratio)
    assert "not the geometry" in second.note


def test_an_update_of_the_users_own():
    rule = geodiag.Update(0.2, momentum=0.5)
    monitor, optimizer, model, data = attached(torch.optim.Adagrad, norm="l2", update=rule)
    train(optimizer, model, data, 1)
    assert monitor.records[0].threshold == pytest.approx(15.0)
    monitor, optimizer, model, data = attached(torch.optim.Adagrad, norm="l2")
    train(optimizer, model, data, 1)
    assert "the geometry of Adagrad is not known" in monitor.records[0].note


def test_a_wrapped_optimizer_is_looked_through():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer
            self.param_groups = optimizer.param_groups

        def step(self, closure=None):
            self.optimizer.step(closure)

    model, data, _ = regression()
    wrapper = Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    monitor = attach(wrapper, model, criterion=mse, data=data, every=1)
    mse(model(data[0]), data[1]).backward()
    wrapper.step()
    assert math.isfinite(monitor.records[0].ratio)


def test_bad_arguments():
    model, data, _ = regression()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    good = {"criterion": mse, "data": data}
    with pytest.raises(errors.ArgumentError, match=r"takes a torch\.optim\.Optimizer"):
        attach(model, model, **good)
    with pytest.raises(errors.ArgumentError, match="takes a torch module"):
        attach(sgd, lambda x: x, **good)
    with pytest.raises(errors.ParameterError, match="holds none"):
        attach(sgd, copy.deepcopy(model), **good)
    with pytest.raises(errors.UnknownNorm):
        attach(sgd, model, "l3", **good)
    with pytest.raises(errors.ArgumentError, match="every"):
        attach(sgd, model, every=0, **good)
    with pytest.raises(errors.ArgumentError, match="log"):
        attach(sgd, model, log=3, **good)
    with pytest.raises(errors.ParameterError, match="matches no parameter"):
        attach(sgd, model, where="conv", **good)
    with pytest.raises(errors.ArgumentError, match="geometry of Adagrad is not known"):
        attach(torch.optim.Adagrad(model.parameters()), model, **good)
    with pytest.raises(errors.DataError, match="pass one batch as a tuple"):
        attach(sgd, model, criterion=mse, data=list(data)[:1])
    with pytest.raises(errors.LossError, match="neither criterion"):
        attach(sgd, model, data=data)
    assert not sgd._optimizer_step_pre_hooks
    assert attach(sgd, model, "auto", **good).records == []
