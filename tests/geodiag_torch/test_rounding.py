"""The stated rounding errors bound the true ones, in at least 95 % of random draws.

The truth is the same network in float64, with the very step that was taken.
"""

from __future__ import annotations

import copy
import math
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
from geodiag.blocks import dot

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = ("remainder", "optimal", "pointwise", "path", "curvature")
MSE, CROSS_ENTROPY = nn.MSELoss(), nn.CrossEntropyLoss()


class Draw(NamedTuple):
    model: nn.Module
    loss_fn: object
    data: tuple
    step: dict  # float64, of numbers of the model's dtype
    exact: geodiag.Oracle


def loss_of(criterion, kind="", dtype=None):
    """``kind``: the "autocast" or the "cast" to a dtype that the loss has of its own."""

    def plain(model, batch):
        return criterion(model(batch[0]), batch[1])

    def autocast(model, batch):
        with torch.autocast("cpu", dtype):
            return plain(model, batch)

    def cast(model, batch):
        (first, activation, last), x = model, batch[0]
        for layer in (first, last):
            x = activation(x) if layer is last else x.to(dtype)
            x = nn.functional.linear(x, layer.weight.to(dtype), layer.bias.to(dtype))
        return criterion(x, batch[1].to(dtype) if criterion is MSE else batch[1])

    return {"": plain, "autocast": autocast, "cast": cast}[kind]


def draw(seed, precision="float32"):
    """A network, trained for a while or not, and a step of any length."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    hidden, count = int(rng.integers(4, 32)), int(rng.integers(8, 100))
    activation = (nn.Tanh, nn.ReLU, nn.GELU)[rng.integers(3)]()
    model = nn.Sequential(nn.Linear(6, hidden), activation, nn.Linear(hidden, 3))
    criterion = (MSE, CROSS_ENTROPY)[rng.integers(2)]
    x = torch.randn(count, 6)
    y = torch.randn(count, 3) if criterion is MSE else (x @ torch.randn(6, 3)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range((0, 30, 100)[rng.integers(3)]):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    kind, _, inside = precision.rpartition(" ")
    if not kind and inside in HALF:
        model, x = model.to(HALF[inside]), x.to(HALF[inside])
        y = y.to(HALF[inside]) if criterion is MSE else y
    loss_fn = loss_of(criterion, kind, HALF.get(inside))
    gradients = torch.autograd.grad(loss_fn(model, (x, y)), list(model.parameters()))
    shape = rng.integers(3)
    step = [
        (-g.double(), torch.randn(g.shape).double(), -g.sign().double())[shape] for g in gradients
    ]
    length = math.sqrt(sum(float((s * s).sum()) for s in step))
    size = math.sqrt(sum(float((p.detach().double() ** 2).sum()) for p in model.parameters()))
    c = size * 10 ** rng.uniform(-4, -0.5) / length
    taken = {}
    for (name, p), s in zip(model.named_parameters(), step, strict=True):
        there = (p.detach().double() + c * s).to(p.dtype)
        taken[name] = there.double() - p.detach().double()
    exact = geodiag.problem(
        copy.deepcopy(model).double(),
        criterion=criterion,
        data=(x.double(), y.double() if criterion is MSE else y),
    ).at()
    return Draw(model, loss_fn, (x, y), taken, exact)


def covered(found):
    """The share of (value, truth, stated error) with the truth within the error."""
    return np.mean([abs(value - truth) <= error for value, truth, error in found])


@pytest.mark.parametrize("precision", ["float32", "autocast bfloat16", "cast bfloat16"])
def test_the_rounding_of_directional_smoothness(precision):
    found = {kind: [] for kind in KINDS}
    for seed in range(30):
        drawn = draw(seed, precision)
        oracle = geodiag.problem(drawn.model, loss_fn=drawn.loss_fn, data=drawn.data).at()
        step = {name: s.float() for name, s in drawn.step.items()}
        if not any(bool(s.any()) for s in step.values()):
            continue
        norm = ("l2", "linf")[seed % 2]
        for kind in KINDS:
            got = geodiag.directional_smoothness(oracle, step, norm, kind=kind)
            truth = geodiag.directional_smoothness(drawn.exact, drawn.step, norm, kind=kind)
            found[kind].append((float(got), float(truth), got.rounding))
    for kind in KINDS:
        # What holds in 95 % holds in 0.8 of 30 draws but once in 1,500 times. A cross-entropy
        # near zero has a curvature that its terms do not show the error of: 88 % in float32.
        least = 0.7 if kind == "curvature" and precision == "float32" else 0.8
        least = 1.0 if kind == "remainder" else least  # of more: python -m tests.rounding
        assert covered(found[kind]) >= least, kind
    if precision == "float32":  # by gradients, where the losses are lost to rounding
        errors = [abs(value - truth) / abs(truth) for value, truth, _ in found["remainder"]]
        assert np.mean(np.asarray(errors) < 0.5) >= 0.95


@pytest.mark.parametrize(
    "precision", ["bfloat16", "float16", "autocast bfloat16", "autocast float16"]
)
def test_every_record_below_32_bits_carries_the_error_of_each_number(precision):
    found = {name: [] for name in ("loss", "dual norm", "sharpness", "D", "curvature")}
    for seed in range(100, 121):
        drawn = draw(seed, precision)
        moved = any(bool(s.any()) for s in drawn.step.values())
        monitor = geodiag.Monitor(
            drawn.model, loss_fn=drawn.loss_fn, data=drawn.data, lr=0.1, every=1, max_hvps=12
        )
        for step in range(2):  # the note is of every record, not of the first
            monitor.before(step)
            witness = monitor._pending.result
            with torch.no_grad():
                for name, p in drawn.model.named_parameters():
                    p.add_(drawn.step[name].to(p.dtype) * (1 - 2 * step))
            record = monitor.after()
            pattern = r"(loss|dual norm|sharpness|D|curvature) ± ([^,;]+)"
            stated = re.findall(pattern, record.note)
            stated = {name: float(error) for name, error in stated}
            expected = {"loss", "dual norm"} | ({"curvature"} if moved else set())
            expected |= set() if math.isnan(record.sharpness) else {"sharpness"}
            assert set(stated) >= expected, record
            stated.setdefault("D", 0.5 * abs(record.directional_smoothness))  # in float32
            if step or not moved:
                continue
            d = {name: x.double() for name, x in witness.direction.items()}
            along = [
                float(geodiag.directional_smoothness(drawn.exact, drawn.step, kind=kind))
                for kind in ("remainder", "curvature")
            ]
            gradient = drawn.exact.gradient()
            truths = {
                "loss": (record.loss, float(drawn.exact.loss())),
                "dual norm": (record.dual_norm, math.sqrt(float(dot(gradient, gradient)))),
                "sharpness": (witness.value, float(dot(d, drawn.exact.hvp(d)))),
                "D": (record.directional_smoothness, along[0]),
                "curvature": (record.curvature, along[1]),
            }
            for name, pair in truths.items():
                found[name].append((*pair, stated[name]))
        monitor.close()
    for name, each in found.items():
        assert covered(each) >= 0.8, name  # as above
