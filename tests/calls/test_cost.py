"""What a measurement is said to take, against what it then takes: products and passes, by counting.

The vectors are those of docs/memory.md, which are measured in tests/memory.
"""

from __future__ import annotations

import math
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import geodiag
from geodiag.errors import ArgumentError
from tests.memory.test_bounds import table

N = 40
CURVED = np.linspace(1.0, 3.0, N)


class Counted:
    """A pair of callables that count; L = Σ c cosh(w)."""

    def __init__(self):
        self.asked = Counter()
        self.at = {"params": {"x": np.linspace(-0.1, 0.1, N)}}

    @property
    def pair(self):
        return self.loss, self.gradient

    def loss(self, w):
        self.asked["loss"] += 1
        return float(CURVED @ np.cosh(w["x"]))

    def gradient(self, w):
        self.asked["gradient"] += 1
        return {"x": CURVED * np.sinh(w["x"])}


@pytest.mark.parametrize("norm", ["l2", "linf", "block"])
@pytest.mark.parametrize("mode", ["sharpness", "certificate"])
def test_a_measurement_takes_no_more_products(norm, mode):
    counted = Counted()
    cost = geodiag.estimate_cost(counted.pair, norm, mode=mode, **counted.at)
    options = {"certificate": True} if mode == "certificate" else {}
    result = geodiag.sharpness(counted.pair, norm, **counted.at, **options)
    assert 0 < result.num_hvps <= cost.hvps <= 300
    assert cost.passes == cost.hvps + 1
    assert 0 < cost.seconds < math.inf
    if norm == "linf" and mode == "sharpness":
        assert result.num_hvps > cost.hvps / 2


@pytest.mark.parametrize("critical", [False, True])
def test_a_record_of_the_step_takes_no_more(critical):
    counted = Counted()
    mode = "critical" if critical else "step"
    cost = geodiag.estimate_cost(counted.pair, None, mode=mode, **counted.at)
    options = {"sharpness": False, "critical": critical, "lr": 0.1, "every": 1}
    monitor = geodiag.Monitor(counted.pair, None, **counted.at, **options)
    here = counted.at["params"]
    there = {"x": here["x"] - 0.1 * counted.gradient(here)["x"]}
    monitor.observe(0, here, there)
    counted.asked.clear()
    record = monitor.observe(1, here, there)
    assert counted.asked["gradient"] == 1
    assert counted.asked["loss"] + record.num_hvps <= cost.passes
    assert record.num_hvps <= cost.hvps == 1
    assert (cost.passes, record.num_hvps) == (6 if critical else 3, 0)


def test_vectors_and_bytes_are_those_of_the_page():
    page, model = table(), torch.nn.Linear(4, 3)
    given = {"criterion": torch.nn.MSELoss(), "data": (torch.ones(2, 4), torch.ones(2, 3))}
    for norm, mode, row in (
        ("l2", "sharpness", ("`Lanczos` (quadratic norms)", "all")),
        ("linf", "sharpness", ("`Ascent` (ℓ∞ and other norms without decompositions)", "small")),
        ("linf", "warm", ("every 5th warm `Ascent`", "small")),
        ("linf", "certificate", ("`certificate=True`, 60 products", "small")),
        ("l2", "step", ("`directional_smoothness`", "all")),
    ):
        cost = geodiag.estimate_cost(model, norm, mode=mode, ranks=4, **given)
        bound = max(page[row].values())
        assert bound <= cost.vectors <= 1.05 * bound
        assert cost.bytes_per_rank == cost.vectors * 4 * math.ceil(15 / 4)
        assert all(p.grad is None for p in model.parameters())
    whole = geodiag.estimate_cost(model, "linf", **given)
    assert whole.bytes_per_rank == whole.vectors * 4 * 15


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x**2).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def test_a_model_without_products_is_said():
    model = torch.nn.Linear(2, 1)
    given = {"loss_fn": lambda m, batch: Once.apply(m.weight) + m.bias.sum(), "data": [0]}
    cost = geodiag.estimate_cost(model, None, mode="step", **given)
    assert (cost.hvps, cost.passes) == (0, 2)
    assert "no Hessian-vector product" in cost.note
    assert 0 < cost.seconds < math.inf
    with pytest.raises(ArgumentError):
        geodiag.estimate_cost(model, None, **given)


def test_in_jax_and_of_a_matrix():
    cost = geodiag.estimate_cost(lambda w: jnp.sum(w**4), "linf", params=jnp.ones(30))
    assert cost.hvps == 60
    assert 0 < cost.seconds < math.inf
    cost = geodiag.estimate_cost(np.eye(3), "linf")
    assert math.isnan(cost.hvps)
    assert math.isnan(cost.seconds)
    assert "not counted" in cost.note


@pytest.mark.parametrize("wrong", [{"mode": "fast"}, {"mode": 3}, {"ranks": 0}, {"ranks": 1.5}])
def test_what_is_refused(wrong):
    with pytest.raises(ArgumentError):
        geodiag.estimate_cost(np.eye(2), **wrong)
