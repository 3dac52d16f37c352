"""Monitors without S: closed forms, what a record costs, and models that have no second derivative.

The truth is algebra: on ½⟨w, Hw⟩ every D is ⟨s, Hs⟩/‖s‖², ζ = 1 + ΔL/(−⟨g, s⟩), and the loss is
back where it was at α_c = −2⟨g, s⟩/⟨s, Hs⟩.
"""

from __future__ import annotations

import copy
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import geodiag
import geodiag_jax
import geodiag_torch
from geodiag.errors import ArgumentError
from geodiag.monitoring.critical_step import CriticalSteps
from tests.geodiag_torch.models import Calls
from tests.monitored import LR, G, H, W, gradient, loss, note, pair, run

S = -LR * G  # the first step
EDGE = 1 + (0.5 * (W + S) @ H @ (W + S) - 0.5 * W @ H @ W) / -(G @ S)
CRITICAL = LR * -2 * (G @ S) / (S @ H @ S)


@pytest.mark.parametrize("norm", ["l2", "linf", None])
def test_along_a_quadratic(norm):
    asked = Counter()

    def counted(f):
        return lambda w: asked.update([f]) or f(w)

    monitor, w = pair(counted(loss), counted(gradient), norm, sharpness=False, critical=True)
    record = run(monitor, w, steps=1)[0]
    assert record.realized_edge == pytest.approx(EDGE, rel=1e-12)
    assert record.critical_lr == pytest.approx(CRITICAL, rel=1 / 16)
    assert abs(record.critical_lr - CRITICAL) <= 1.001 * record.critical_lr_error
    assert 0 < record.critical_lr_error <= CRITICAL / 30
    assert record.loss == 0.5 * W @ H @ W
    assert record.lr == LR
    length = {"l2": np.linalg.norm(S), "linf": np.abs(S).max(), None: math.nan}[norm]
    bend = pytest.approx(S @ H @ S / length**2, rel=1e-10, nan_ok=True)
    assert record.directional_smoothness == bend
    assert record.timing == pytest.approx(-2 * G @ S / (20 * length**2), rel=1e-12, nan_ok=True)
    assert math.isnan(record.sharpness)
    assert math.isnan(record.ratio)
    assert (record.num_hvps, record.status) == (0, "")
    assert note(record) == ("" if norm else "no D, and no threshold: no norm was given")
    assert asked[gradient] == 1
    assert asked[loss] <= 1 + 4 + 1  # L(w), four of the search, and a sample of the rounding


def test_the_critical_step_beside_s():
    monitor, w = pair(critical=True)
    records = run(monitor, w)
    plain, v = pair()
    for record, other in zip(records, run(plain, v), strict=True):
        assert record.critical_lr == pytest.approx(
            2 / record.directional_smoothness, rel=1 / 16
        )  # plain descent
        same = {"critical_lr": math.nan, "critical_lr_error": math.nan, "seconds": 0.0, "run": ""}
        assert str(record.to_dict() | same) == str(other.to_dict() | same)


@pytest.mark.parametrize("sharpness", [True, False])
@pytest.mark.parametrize(
    ("there", "reason"),
    [
        (W - S, "the step does not descend"),
        (W, "the step was zero"),
        (W + np.nan, "the step is not finite"),
    ],
)
def test_where_there_is_no_critical_step(sharpness, there, reason):
    monitor, _ = pair(sharpness=sharpness, critical=True)
    record = monitor.observe(0, {"x": W}, {"x": there})
    assert math.isnan(record.critical_lr)
    assert math.isnan(record.realized_edge)
    assert reason in record.note


@pytest.mark.parametrize("sharpness", [True, False])
def test_a_loss_that_never_rises(sharpness):
    """L = −Σw: no bracket, which the note says; and without a rate it is of the step."""
    falling = (lambda w: -float(np.sum(w["x"])), lambda w: {"x": -np.ones(3)})
    monitor = geodiag.Monitor(falling, params={"x": W}, every=1, sharpness=sharpness, critical=True)
    record = monitor.observe(0, {"x": W}, {"x": W + 1})
    assert math.isnan(record.critical_lr)
    assert "no critical step: no bracket in 12 losses" in record.note
    monitor = geodiag.Monitor(H, every=1, sharpness=sharpness, critical=True)
    record = monitor.observe(0, {"x": W}, {"x": W + S})
    assert record.critical_lr == pytest.approx(CRITICAL / LR, rel=1 / 16)
    assert "a multiple of the step" in record.note


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_after_the_step(beyond):
    """Then the critical step is short of it: half of a step to where it is not."""
    wall = (lambda w: loss(w) if w["x"][0] > 0 else beyond, gradient)
    monitor = geodiag.Monitor(wall, None, params={"x": W}, lr=LR, sharpness=False, critical=True)
    record = monitor.observe(0, {"x": W}, {"x": W + np.array([-2, 2, -2])})
    assert math.isnan(record.realized_edge)
    assert "not finite" in record.note
    assert record.critical_lr == pytest.approx(0.5 * LR, rel=1 / 16)
    record = monitor.observe(10, {"x": W - np.array([2, 0, 0])}, {"x": W})
    assert math.isnan(record.critical_lr)


class Counting(nn.Module):
    """Counts forward and backward passes; its normalisation layer changes a buffer each step."""

    def __init__(self, double=True):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 2))
        self.double = double
        self.calls = Calls()
        self.calls.made = Counter()

    def forward(self, x):
        self.calls.made["forward"] += 1
        return Passed.apply(self.net(x), self)


class Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, model):
        ctx.model = model
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.model.calls.made["backward"] += 1
        if not ctx.model.double and torch.is_grad_enabled():
            raise RuntimeError("this operation cannot be differentiated twice")
        return g, None


class Unknown(torch.optim.SGD):
    """An optimizer that no one knows."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.__class__ = type("Odd", (torch.optim.Optimizer,), dict(Unknown.__dict__))

    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group["params"]):
            p.data -= self.param_groups[0]["lr"] * p.grad.sign() * p.grad.abs().sqrt()


def train(optimizer, double=True, steps=9, **options):
    """The weights after a few steps, the records, and the passes that the last of them took."""
    torch.manual_seed(0)
    model = Counting(double)
    x, y = torch.randn(32, 5), torch.randn(32, 2)
    criterion = nn.MSELoss()
    made = optimizer(list(model.parameters()))
    monitor = None
    if options:
        data = {"criterion": criterion, "data": (x, y), "every": 4}
        monitor = geodiag_torch.attach(made, model, **data | options)
    for _ in range(steps):
        made.zero_grad()
        criterion(model(x), y).backward()
        model.calls.made.clear()
        made.step()
    weights = [p.detach().clone() for p in (*model.parameters(), *model.buffers())]
    return weights, monitor.records if monitor else [], dict(model.calls.made)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "unknown": lambda p: Unknown(p, 0.01),
}


@pytest.mark.parametrize("double", [True, False], ids=["", "no double backward"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_a_record_of_attach_takes(name, double, monkeypatch):
    """Two forward passes and a gradient, also where buffers change; training is bit-identical."""
    plain, _, _ = train(OPTIMIZERS[name])
    weights, records, passes = train(OPTIMIZERS[name], double, sharpness=False)
    assert all(map(torch.equal, weights, plain))
    assert passes["forward"] <= 3
    assert passes["backward"] == 1
    assert [r.step for r in records] == [0, 4, 8]
    for record in records:
        assert 0 < record.realized_edge < 2
        assert record.num_hvps == 0
        assert math.isnan(record.directional_smoothness) == (name == "unknown")
    assert ("no D" in records[0].note) == (name == "unknown")
    asked = []
    found = CriticalSteps.search
    monkeypatch.setattr(
        CriticalSteps, "search", lambda *args: asked.append(found(*args)) or asked[-1]
    )
    weights, searched, more = train(OPTIMIZERS[name], double, sharpness=False, critical=True)
    assert all(map(torch.equal, weights, plain))
    assert more["forward"] == passes["forward"] + asked[-1].num_losses - 1  # L(w⁺) is known
    assert more["backward"] == 1
    for record, other in zip(records, searched, strict=True):
        assert record.realized_edge == other.realized_edge
        assert other.critical_lr > 0


def test_training_without_a_second_derivative_in_jax():
    """A rule whose backward pass calls the host, as a kernel of another library does."""

    @jax.custom_vjp
    def square(x):
        return x**2

    def backward(x, g):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (jax.pure_callback(lambda x, g: 2 * np.asarray(x) * g, shape, x, g),)

    square.defvjp(lambda x: (x**2, x), backward)

    def rule(w):
        return jnp.sum(square(w["x"]) * jnp.diag(jnp.asarray(H))) / 2

    monitor = geodiag_jax.Monitor(rule, None, lr=LR, every=1, sharpness=False, critical=True)
    here = {"x": jnp.asarray(W)}
    for step in range(2):
        record = monitor.observe(step, here, {"x": jnp.asarray(W + S)})
        assert record.realized_edge == pytest.approx(EDGE, rel=1e-5)
        assert record.critical_lr == pytest.approx(CRITICAL, rel=1 / 16)
        assert record.num_hvps == 0
        assert math.isnan(record.directional_smoothness)
    assert "no D" in monitor.records[0].note
    assert monitor.records[1].note == ""


LARGE = 1e4  # added to the loss: in float32 its spacing is 1e-3


def drowned_torch(double, large=LARGE):
    model = Counting(double)
    model.net, model.x = nn.Identity(), nn.Parameter(torch.tensor(W, dtype=torch.float32))
    matrix = torch.tensor(H, dtype=torch.float32)
    loss_fn = lambda m, batch: large + 0.5 * Passed.apply(m.x, m) @ matrix @ m.x  # noqa: E731
    optimizer = torch.optim.SGD([model.x], lr=1e-4)
    monitor = geodiag_torch.attach(
        optimizer, model, loss_fn=loss_fn, data=[0], every=1, sharpness=False, critical=True
    )
    loss_fn(model, None).backward()
    optimizer.step()
    return monitor.records[0]


def drowned_jax(double, large=LARGE):
    matrix = jnp.asarray(H, jnp.float32)
    half = jax.custom_vjp(lambda x: 0.5 * x @ matrix @ x)

    def backward(x, g):
        if double:
            return (g * (matrix @ x),)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (jax.pure_callback(lambda x: (H @ x).astype("float32"), shape, x),)

    half.defvjp(lambda x: (half(x), x), backward)
    monitor = geodiag_jax.Monitor(
        lambda w: large + half(w["x"]), "l2", lr=1e-4, every=1, sharpness=False, critical=True
    )
    here = {"x": jnp.asarray(W, jnp.float32)}
    return monitor.observe(0, here, {"x": here["x"] - 1e-4 * jnp.asarray(G, jnp.float32)})


@pytest.mark.parametrize("double", [True, False], ids=["", "no double backward"])
@pytest.mark.parametrize("drowned", [drowned_torch, drowned_jax])
def test_where_the_losses_are_lost_to_rounding(drowned, double):
    """One product, and ζ and D are from it; without one the note says how far they may be off."""
    record = drowned(double)
    bend = G @ H @ G / (G @ G)
    assert "rounding of the losses: D ± " in record.note
    if double:
        assert record.num_hvps == 1
        assert "from the curvature along the step" in record.note
        assert record.curvature == pytest.approx(bend, rel=1e-5)
        assert record.directional_smoothness == pytest.approx(bend, rel=1e-5)
        assert record.realized_edge == pytest.approx(1e-4 * bend / 2, rel=1e-3)
    else:
        error = float(record.note.partition("D ± ")[2].partition(",")[0])
        assert abs(record.directional_smoothness - bend) <= error
        assert "no curvature along the step" in record.note
    if not math.isnan(record.critical_lr):
        assert abs(record.critical_lr - 2 / bend) <= record.critical_lr_error * (1 + 1e-4)
        factor = (record.critical_lr - record.critical_lr_error) / 1e-4
        assert record.critical_lr_error <= record.critical_lr * math.log(factor) / 32
    else:
        assert "no critical step" in record.note


@pytest.mark.parametrize("drowned", [drowned_torch, drowned_jax])
def test_where_rounding_takes_d_alone(drowned):
    """ζ is known to be near 0 then, and no product is spent on D."""
    record = drowned(True, large=LARGE / 1000)
    bend = G @ H @ G / (G @ G)
    for name, value, truth in (
        ("D", record.directional_smoothness, bend),
        ("ζ", record.realized_edge, 1e-4 * bend / 2),
    ):
        error = float(record.note.partition(f"{name} ± ")[2].partition(",")[0])
        assert abs(value - truth) <= error
    assert error <= 0.05
    assert record.num_hvps == 0
    assert math.isnan(record.curvature)


def test_arguments_that_are_refused():
    for wrong in (
        {"sharpness": "no"},
        {"critical": 1},
        {"sharpness": False, "certificate": True},
        {"norm": None},
    ):
        with pytest.raises(ArgumentError):
            geodiag.Monitor(H, **wrong)


def test_a_measurement_leaves_no_trace_in_the_arguments():
    monitor, w = pair(sharpness=False, critical=True)
    before = copy.deepcopy(w)
    monitor.before(0)
    assert np.array_equal(w["x"], before["x"])
    state = monitor.state_dict()
    other, _ = pair(sharpness=False)
    other.load_state_dict(state)
