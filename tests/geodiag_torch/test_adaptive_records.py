"""Records of optimizers with a state: P is that of the step that was taken.

The truth is P by the formulas of the optimizers' papers, from a run without a monitor, and the
dense float64 Hessian at the point where the step began.
"""

from __future__ import annotations

import copy
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import geodiag_jax
from geodiag_torch import attach
from tests.geodiag_torch.test_following import close, fit, hessian, net

mse = nn.functional.mse_loss
RMSprop, Adam, AdamW = torch.optim.RMSprop, torch.optim.Adam, torch.optim.AdamW
B1, B2, EPS = 0.9, 0.99, 1e-6


def adam(g, t, at, kind):
    at["v"] = B2 * at.get("v", 0.0) + (1 - B2) * g**2
    at["top"] = torch.maximum(at.get("top", at["v"]), at["v"]) if kind == "amsgrad" else at["v"]
    return (1 - B1**t) * ((at["top"] / (1 - B2**t)).sqrt() + EPS)


def rmsprop(g, t, at, kind):
    at["v"] = B2 * at.get("v", 0.0) + (1 - B2) * g**2
    at["mean"] = B2 * at.get("mean", 0.0) + (1 - B2) * g if kind == "centered" else 0.0
    return (at["v"] - at["mean"] ** 2).sqrt() + EPS


BETAS = {"betas": (B1, B2), "eps": EPS}
RULES = {
    "adam": (lambda p: Adam(p, 1e-2, **BETAS), adam, ""),
    "adamw": (lambda p: AdamW(p, 1e-2, weight_decay=0.1, **BETAS), adam, ""),
    "amsgrad": (lambda p: Adam(p, 1e-2, amsgrad=True, **BETAS), adam, "amsgrad"),
    "foreach": (lambda p: Adam(p, 1e-2, foreach=True, **BETAS), adam, ""),
    "fused": (lambda p: Adam(p, 1e-2, fused=True, **BETAS), adam, ""),
    "tensor lr": (lambda p: Adam(p, torch.tensor(1e-2), **BETAS), adam, ""),
    "rmsprop": (lambda p: RMSprop(p, 1e-2, alpha=B2, eps=EPS), rmsprop, ""),
    "centered": (lambda p: RMSprop(p, 1e-2, alpha=B2, eps=EPS, centered=True), rmsprop, "centered"),
}


def truths(model, data, make, preconditioner, kind, steps):
    """S at each step of a run of a copy, which no monitor sees."""
    twin = copy.deepcopy(model)
    optimizer, found = make(twin.parameters()), []
    state = [{} for _ in twin.parameters()]
    for t in range(1, steps + 1):
        h = hessian(lambda: fit(twin, data), list(twin.parameters()))
        optimizer.zero_grad()
        fit(twin, data).backward()
        p = [
            preconditioner(q.grad.clone(), t, at, kind)
            for q, at in zip(twin.parameters(), state, strict=True)
        ]
        root = torch.cat([x.flatten() for x in p]).rsqrt()
        found.append(float(torch.linalg.eigvalsh(root[:, None] * h * root)[-1]))
        optimizer.step()
    return found


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_the_preconditioner_is_that_of_the_step(name, closure):
    make, preconditioner, kind = RULES[name]
    model, data = net()
    expected = truths(model, data, make, preconditioner, kind, 4)
    optimizer = make(model.parameters())
    monitor = attach(optimizer, model, criterion=mse, data=data, every=1, rtol=1e-8)
    for _ in range(4):

        def loss():
            optimizer.zero_grad()
            value = fit(model, data)
            value.backward()
            return value

        optimizer.step(loss) if closure else (loss(), optimizer.step())
    known = slice(1 if kind == "centered" else 0, None)  # v = ḡ² after one step: P = ε
    assert [r.sharpness for r in monitor.records][known] == pytest.approx(expected[known], rel=1e-6)


@pytest.mark.parametrize("b2", [0.999, 0.95])
def test_both_frameworks_have_one_answer(b2):
    rng = np.random.default_rng(0)
    w, x, y = (
        rng.standard_normal((3, 8)) / 3,
        rng.standard_normal((40, 8)),
        rng.standard_normal((40, 3)),
    )
    model = nn.Linear(8, 3, bias=False).double()
    model.weight.data = torch.tensor(w)
    optimizer = Adam(model.parameters(), lr=1e-3, betas=(0.9, b2))
    data = torch.tensor(x), torch.tensor(y)

    def criterion(out, target):
        return ((torch.tanh(out) - target) ** 2).mean()

    ours = attach(optimizer, model, criterion=criterion, data=data, every=1, rtol=1e-6)
    for _ in range(6):
        optimizer.zero_grad()
        criterion(model(data[0]), data[1]).backward()
        optimizer.step()

    def loss(p, x, y):
        return jnp.mean((jnp.tanh(x @ p["w"].T) - y) ** 2)

    transform, p = optax.adam(1e-3, b2=b2), {"w": jnp.asarray(w)}
    state = transform.init(p)
    theirs = geodiag_jax.Monitor(
        loss, data=(x, y), lr=1e-3, hyperparams={"b2": b2}, every=1, rtol=1e-6
    )
    for t in range(6):
        updates, state = transform.update(jax.grad(loss)(p, x, y), state, p)
        new = optax.apply_updates(p, updates)
        theirs.observe(t, p, new, state)
        p = new
    for a, b in zip(ours.records, theirs.records, strict=True):
        assert a.ratio == pytest.approx(b.ratio, rel=1e-5)


class Spare(nn.Module):
    """A network with a layer that the loss does not use, until ``both``."""

    def __init__(self):
        super().__init__()
        self.net, self.data = net()
        self.spare, self.both = nn.Linear(2, 2).double(), False

    def forward(self, x):
        out = self.net(x)
        return out + self.spare(out) if self.both else out


@pytest.mark.parametrize("make", [Adam, AdamW, RMSprop])
def test_a_parameter_without_a_gradient_is_left_out(make):
    model = Spare()
    optimizer = make(model.parameters(), lr=1e-2)
    monitor = attach(optimizer, model, criterion=mse, data=model.data, every=1, rtol=1e-8)
    alone = make(copy.deepcopy(model.net).parameters(), lr=1e-2)
    twin = nn.Sequential(*copy.deepcopy(model.net))
    alone = make(twin.parameters(), lr=1e-2)
    plain = attach(alone, twin, criterion=mse, data=model.data, every=1, rtol=1e-8)
    for at in range(4):
        model.both = at == 3
        for m, o in ((model, optimizer), (twin, alone)):
            o.zero_grad()
            fit(m, model.data).backward()
            o.step()
    note = "not measured: parameters without a gradient so far: 'spare.weight', 'spare.bias'"
    for a, b in zip(monitor.records[:3], plain.records[:3], strict=True):
        assert close(a.sharpness, b.sharpness)
        assert close(a.ratio, b.ratio)
        assert math.isfinite(a.directional_smoothness)
        assert (a.note, b.note) == (note, "")
    last = monitor.records[3]
    assert "not measured" not in last.note
    assert math.isfinite(last.ratio)


def test_a_state_of_some_parameters_alone():
    """As after loading a checkpoint of fewer layers, where the others have no gradient."""
    model = Spare()
    optimizer = Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        fit(model, model.data).backward()
        optimizer.step()
    again = Adam(model.parameters(), lr=1e-2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    monitor = attach(again, model, criterion=mse, data=model.data, every=1)
    again.zero_grad()
    fit(model, model.data).backward()
    again.step()
    (record,) = monitor.records
    assert math.isfinite(record.ratio)
    assert "without a gradient so far: 'spare.weight'" in record.note


@pytest.mark.parametrize("failing", [False, True])
def test_a_step_that_fails_leaves_a_record(failing):
    model, data = net()
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = attach(optimizer, model, criterion=mse, data=data, every=1)

    def broken():
        raise RuntimeError("no loss")

    if failing:
        with pytest.raises(RuntimeError, match="no loss"):
            optimizer.step(broken)
    fit(model, data).backward()
    optimizer.step()
    assert math.isfinite(monitor.records[-1].ratio)
    assert [r.note for r in monitor.records[:-1]] == ["the step was not observed"] * failing
