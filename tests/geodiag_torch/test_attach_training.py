"""Training with a monitor is bit-identical to training without; and how real loops step.

Accumulated gradients, gradient scalers, autocast, clipping, closures.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import geodiag_torch
from geodiag_torch import attach
from tests.geodiag_torch.models import fingerprint, mlp, regression

mse = nn.functional.mse_loss


class Noisy(nn.Module):
    """All that a measurement could disturb: dropout, batch statistics, a counter in a buffer."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3)
        )
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.net(x)


def matrices(model):
    return [p for p in model.parameters() if p.dim() == 2]


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, amsgrad=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
    "muon": lambda m: torch.optim.Muon(matrices(m), lr=0.01),
    "spectral": lambda m: geodiag_torch.NonEuclideanGD(m.named_parameters(), 0.01, "spectral"),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.01, max_iter=3),
}


def noisy_run(name, monitored, steps, closure):
    """All that is left after a run with dropout, shuffled batches, and clipping."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Noisy()
    dataset = torch.utils.data.TensorDataset(torch.randn(24, 5), torch.randn(24, 3))
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)
    optimizer = OPTIMIZERS[name](model)
    if monitored:
        monitor = attach(
            optimizer, model, "l2" if name == "lbfgs" else None, criterion=mse,
            data=loader if monitored == "loader" else (torch.ones(6, 5), torch.ones(6, 3)),
            every=20, max_hvps=6,
        )  # fmt: skip
    torch.manual_seed(1)
    done = 0
    while done < steps:
        for x, y in loader:

            def loss(x=x, y=y):
                optimizer.zero_grad()
                value = mse(model(x), y)
                value.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                return value

            optimizer.step(loss) if closure else (loss(), optimizer.step())
            done += 1
    if monitored:
        assert len(monitor.records) == math.ceil(done / 20)
        found = [r for r in monitor.records if math.isfinite(r.sharpness)]
        assert len(found) >= len(monitor.records) - 1, monitor.records  # Adam's first has none
        assert all(math.isfinite(r.curvature) for r in found)
        monitor.detach()
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
    return without_addresses(fingerprint(model, optimizer))


def without_addresses(x):
    """A fingerprint without what differs from process to process, or from copy to copy."""
    if isinstance(x, dict):
        return {k: without_addresses(v) for k, v in x.items() if k != "param_names"}
    if isinstance(x, tuple) and len(x) == 3 and isinstance(x[2], bytes):
        return x[1:]
    return repr(x) if isinstance(x, list) else x


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_bit_identical(name):
    closure = name in ("adamw", "lbfgs")
    steps = 80 if name == "lbfgs" else 200  # each of them is several
    assert noisy_run(name, True, steps, closure) == noisy_run(name, False, steps, closure)


def test_training_is_bit_identical_beside_a_shuffling_loader():
    assert noisy_run("sgd", "loader", 60, False) == noisy_run("sgd", False, 60, False)


def test_gradient_accumulation_counts_the_optimizers_steps():
    model, (x, y), _ = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = attach(optimizer, model, criterion=mse, data=(x, y), every=1)
    for i in range(8):
        (mse(model(x[i::8]), y[i::8]) / 4).backward()
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    assert [r.step for r in monitor.records] == [0, 1]
    assert all(math.isfinite(r.ratio) for r in monitor.records)


def test_the_grad_scaler_and_its_skipped_steps():
    """A step that the scaler leaves out does not happen: no record, and nothing is counted."""
    model, data, h = regression()
    model, (x, y) = model.float(), (data[0].float(), data[1].float())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = attach(optimizer, model, criterion=mse, data=(x, y), every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i in range(5):
        optimizer.zero_grad()
        scaler.scale(mse(model(x), y)).backward()
        if i in (0, 3):
            model.weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
    assert [r.step for r in monitor.records] == [0, 1, 2]
    top = np.linalg.eigvalsh(h)[-1]
    assert [r.sharpness for r in monitor.records] == pytest.approx([top] * 3, rel=1e-3)
    assert [r.note for r in monitor.records] == [""] * 3


def test_a_fused_optimizer_leaves_steps_out_by_itself():
    ends = []
    for monitored in (False, True):
        model, (x, y) = mlp(torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        if monitored:
            monitor = attach(optimizer, model, criterion=mse, data=(x, y), every=1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for i in range(4):
            optimizer.zero_grad()
            scaler.scale(mse(model(x), y)).backward()
            if i in (0, 2):
                model[0].weight.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *ends))
    assert [math.isfinite(r.sharpness) for r in monitor.records] == [False, True, True, True]
    assert [r.note for r in monitor.records[2:]] == ["the step was zero", ""]


def test_autocast_is_measured_where_the_loss_has_it():
    model, (x, y) = mlp(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return mse(model(batch[0]).float(), batch[1])

    cast = attach(optimizer, model, loss_fn=loss, data=(x, y), every=1)
    plain = attach(optimizer, model, criterion=mse, data=(x, y), every=1)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model, (x, y)).backward()
        optimizer.step()
    for a, b in zip(cast.records, plain.records, strict=True):
        assert a.loss != b.loss
        assert a.loss == pytest.approx(b.loss, rel=2**-6)
        assert a.sharpness == pytest.approx(b.sharpness, rel=0.1)
