"""A threshold is reported only where the step that was taken is the one that it belongs to.

Each run is full batch, in float64 and float32; what is done to its gradients or its steps is known,
and so is the factor that a note must give.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from geodiag_torch import NonEuclideanGD, attach
from tests.geodiag_torch import optimizers as zoo

mse = nn.functional.mse_loss
SGD, Adam = torch.optim.SGD, torch.optim.Adam
EXACT = {"ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 40, "momentum": 0.0,
         "nesterov": False, "weight_decay": 0.0}  # fmt: skip


def problem(dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias), nn.Tanh(), nn.Linear(7, 3, bias)).to(dtype)
    return model, (torch.randn(40, 5, dtype=dtype), torch.randn(40, 3, dtype=dtype))


def run(make, steps=4, between=None, scale=1.0, backward=1, batch=slice(None), **options):
    """The records of a run; ``between(model, optimizer)``: called before each step."""
    model, (x, y) = problem(**options)
    optimizer = make(model.parameters())
    monitor = attach(optimizer, model, criterion=mse, data=(x, y), every=1)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(backward):
            (scale * mse(model(x[batch]), y[batch])).backward()
        if between is not None:
            between(model, optimizer)
        optimizer.step()
    return monitor.records


RULES = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "decay": lambda p: SGD(p, lr=0.05, weight_decay=0.1),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "foreach": lambda p: SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "fused": lambda p: SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "amsgrad": lambda p: Adam(p, lr=1e-3, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "rmsprop momentum": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
    "spectral": lambda p: NonEuclideanGD(p, 1e-3, "spectral"),
    "linf": lambda p: NonEuclideanGD(p, 1e-3, "linf", normalized=True),
    "sign": lambda p: zoo.SignSGD(p, lr=1e-3),
    "qhm": lambda p: zoo.QHM(p, 0.05, 0.9, 0.7, weight_decay=0.1),
    "ademamix": lambda p: zoo.AdEMAMix(p, lr=1e-3, weight_decay=0.1),
}
# Of which no threshold is established.
LION = {"lion": lambda p: zoo.Lion(p, lr=1e-3, weight_decay=0.1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RULES)
def test_a_plain_run_is_not_doubted(name, dtype):
    for record in run(RULES[name], steps=6, dtype=dtype):
        assert math.isfinite(record.ratio), record.note
        assert "no threshold" not in record.note


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.Muon(p, lr=0.01, **EXACT),
    lambda p: torch.optim.Muon(p, lr=0.01, **EXACT | {"ns_coefficients": (3.4445, -4.775, 2.0315),
                                                      "ns_steps": 5}),
    lambda p: zoo.SingleDeviceMuon(p, lr=0.01),
], ids=["exact", "torch", "original"])  # fmt: skip
def test_nor_is_muon(make):
    records = run(make, bias=False, dtype=torch.float32)
    assert all(math.isfinite(r.ratio) for r in records), records


def test_newton_schulz_moves_the_edge():
    records = run(lambda p: torch.optim.Muon(p, lr=0.01, momentum=0.0, nesterov=False,
                                             weight_decay=0.0), bias=False)  # fmt: skip
    assert "0.68 to 1.20" in records[0].note
    assert "about 1.15, not 1" in records[0].note
    exact = run(lambda p: torch.optim.Muon(p, lr=0.01, **EXACT), bias=False)
    assert "Newton" not in exact[0].note


def clipped(model, optimizer):
    nn.utils.clip_grad_norm_(model.parameters(), 1e-2)


def by_value(model, optimizer):
    nn.utils.clip_grad_value_(model.parameters(), 1e-2)


def by_tensor(model, optimizer):
    for p in model.parameters():
        nn.utils.clip_grad_norm_([p], 1e-2)


SCALED = ["sgd", "momentum", "nesterov", "adam", "rmsprop", "spectral"]
PLAIN = ["sgd", "spectral"]
SCALE_FREE = ["linf", "sign"]


CHANGES = {
    "norm": ({"between": clipped}, "times"),
    "accumulated": ({"backward": 4}, "4 times"),
    "scaled": ({"scale": 0.25}, "0.25 times"),
    "value": ({"between": by_value}, "0.01"),
    "tensor": ({"between": by_tensor}, "by tensor"),
    "negative": ({"scale": -1.0}, "-1 times"),
}
FACTORS = ("norm", "accumulated", "scaled")


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("change", FACTORS)
def test_of_plain_descent_a_factor_is_one_of_its_rate(name, change):
    """The curvature at which the step that was taken is neutral: ΔL = ⟨g, s⟩(1 − D/threshold)."""
    records = run(RULES[name], **CHANGES[change][0])
    assert "times the measured loss's gradient" in records[0].note  # once for the run
    for record in records:
        # ζ = D/threshold holds for the threshold of the step alone.
        quotient = record.directional_smoothness / record.threshold
        assert quotient == pytest.approx(record.realized_edge, rel=1e-3)
        assert record.ratio == pytest.approx(record.sharpness / record.threshold)


@pytest.mark.parametrize("name", [n for n in SCALED if n not in PLAIN])
@pytest.mark.parametrize("change", FACTORS)
def test_with_a_memory_a_lasting_factor_divides_the_threshold(name, change):
    """Adam does not see a factor: its ratio stays. Of the others the threshold is divided by it."""
    same, records = run(RULES[name]), run(RULES[name], **CHANGES[change][0])
    assert "as if that factor lasted" in records[0].note
    factor = {"accumulated": 4.0, "scaled": 0.25}.get(change)
    for record, other in zip(records, same, strict=True):
        assert record.ratio == pytest.approx(record.sharpness / record.threshold)
        if factor is not None and name == "adam":
            assert record.ratio == pytest.approx(other.ratio, rel=1e-3)
        elif factor is not None:
            assert record.threshold * factor == pytest.approx(other.threshold, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "change"), [(n, c) for n in SCALED for c in CHANGES if c not in FACTORS]
)
def test_the_gradient_was_changed_before_the_optimizer(name, change):
    options, said = CHANGES[change]
    for record in run(RULES[name], **options):
        assert math.isnan(record.threshold)
        assert math.isnan(record.ratio)
        assert math.isfinite(record.sharpness)
        assert "no threshold" in record.note
        assert said in record.note


@pytest.mark.parametrize("name", SCALE_FREE)
def test_a_factor_is_no_matter_to_a_normalized_step(name):
    for options in ({"between": clipped}, {"backward": 4}, {"scale": 0.25}):
        assert all(math.isfinite(r.ratio) for r in run(RULES[name], **options))


@pytest.mark.parametrize("name", SCALED)
def test_mini_batches_are_no_contradiction(name):
    first, *others = run(RULES[name], batch=slice(0, 9))
    assert math.isfinite(first.ratio)
    assert "not that of the measured loss" in first.note
    assert all(math.isfinite(r.ratio) for r in others)
    assert all("not that of" not in r.note for r in others)  # once for the run


def halved(optimizer, args, kwargs):
    """The step is halved by another hook, as a trust region or a mask does it."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.data.mul_(0.5).add_(optimizer.before[id(p)], alpha=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lions_step_is_compared(dtype):
    for record in run(LION["lion"], dtype=dtype):
        assert "none established for normalized updates" in record.note
        assert "differs" not in record.note


@pytest.mark.parametrize("name", [*SCALED, "linf", "sign", "adamw", "qhm", "ademamix", "lion"])
def test_the_step_was_changed_after_the_optimizer(name):
    model, (x, y) = problem()
    optimizer = (RULES | LION)[name](model.parameters())
    optimizer.register_step_post_hook(halved)
    monitor = attach(optimizer, model, criterion=mse, data=(x, y), every=1)
    for _ in range(3):
        optimizer.zero_grad()
        mse(model(x), y).backward()
        optimizer.before = {id(p): p.detach().clone() for p in model.parameters()}
        optimizer.step()
    for record in monitor.records:
        assert math.isnan(record.ratio)
        assert "the step differs from what state, lr and hyperparameters predict" in record.note


def test_a_rate_that_changes_inside_the_step():
    """The closure runs a scheduler: the rate in force is the one that the step used."""
    model, (x, y) = problem()
    optimizer = SGD(model.parameters(), lr=0.2)
    monitor = attach(optimizer, model, criterion=mse, data=(x, y), every=1)

    def closure():
        optimizer.zero_grad()
        value = mse(model(x), y)
        value.backward()
        optimizer.param_groups[0]["lr"] /= 2
        return value

    for _ in range(3):
        optimizer.step(closure)
    assert [r.threshold for r in monitor.records] == pytest.approx([20, 40, 80])


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_parameters_that_the_step_leaves_where_they_are(name):
    """Of the measured loss they are a part; the training loss does not reach them."""
    model, (x, y) = problem()
    optimizer = RULES[name](model.parameters())
    monitor = attach(optimizer, model, criterion=mse, data=(x, y), every=1)
    for at in range(3):
        optimizer.zero_grad(set_to_none=True)
        out = model(x) if at == 0 else nn.functional.linear(
            model[1](model[0](x)), model[2].weight.detach(), model[2].bias.detach())  # fmt: skip
        mse(out, y).backward()
        optimizer.step()
    assert math.isfinite(monitor.records[0].ratio)
    for record in monitor.records[1:]:
        assert math.isnan(record.ratio)
        assert "the step leaves '2.weight', '2.bias' where they are" in record.note
