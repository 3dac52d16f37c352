"""Muon beside AdamW: its step with momentum is predicted, and a transformer as people train it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from geodiag_torch import attach
from tests.geodiag_torch.test_several_optimizers import AdamW, Muon, mse, problem


@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muons_step_with_momentum_is_predicted(nesterov, factor):
    """Within the rounding of its bfloat16 iteration; half of it is not."""
    model, x, y = problem()
    matrices = [model[0].weight, model[2].weight]
    muon = Muon(matrices, lr=0.02, momentum=0.95, nesterov=nesterov, weight_decay=0.1)
    biases = AdamW([model[0].bias, model[2].bias], lr=0.01)

    def shortened(optimizer, args, kwargs):
        with torch.no_grad():
            for p, old in zip(matrices, before, strict=True):
                p.copy_(old + factor * (p - old))

    if factor != 1.0:
        muon.register_step_post_hook(shortened)
    monitor = attach([muon, biases], model, criterion=mse, data=(x, y), every=1)
    for _ in range(3):
        before = [p.detach().clone() for p in matrices]
        model.zero_grad()
        mse(model(x), y).backward()
        muon.step()
        biases.step()
    for r in monitor.records:
        assert ("muon: no threshold: the step differs from what state" in r.note) == (factor != 1)


@pytest.mark.slow
def test_the_transformer_of_the_example():
    """Two optimizers, warmup, clipping, accumulation: ζ and the critical step in every record."""
    path = Path(__file__).parents[2] / "examples" / "transformer.py"
    spec = importlib.util.spec_from_file_location("transformer_example", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    records = example.train(steps=13, every=4)
    assert [r.step for r in records] == [0, 4, 8, 12]
    for r in records:
        assert 0 < r.realized_edge < 1
        assert r.critical_lr > r.lr
        assert r.sharpness_muon > 0
        assert r.ratio_adam == pytest.approx(r.sharpness_adam / r.threshold_adam)
        # What is NaN has its reason, and neither step differs from what its rule predicts.
        assert "no threshold: the step has two geometries" in r.note
        assert "muon: no threshold: none established for normalized updates with momentum" in r.note
        assert "differs" not in r.note
