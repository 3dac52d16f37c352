"""Optimizers as people use them in ``geodiag reproduce``: their steps, and ζ along them.

Truth: the other framework's optimizers, and ζ from two losses and a gradient.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from geodiag.experiments.reproduction import cells, data, observed
from tests.experiments.tiny_cells import FRAMEWORKS, USED, flat, tiny, trainer


@pytest.mark.parametrize("method", USED)
def test_both_frameworks_take_the_same_steps(method):
    pytest.importorskip("jax")
    used, points = cells.METHODS[method], []
    for framework in FRAMEWORKS:
        train = trainer(framework, "mlp")
        # Never measured, so that JAX compiles the steps alone.
        train.observe(used.optimizer, 1e-3, used.options, lambda step: False)
        batches = observed.minibatches(500, used.batch or 500, 0)
        for _ in range(3):
            train.set_batch(next(batches))
            train.step()
        points.append(flat(train.point()))
    start = data.task("mlp", None, 0).weights
    # torch's Muon orthogonalises in bfloat16, and optax's corrects its average for the start; torch
    # clips at 1e-6 less.
    near = 0.15 if used.optimizer == "Muon" else 1e-6
    for name, w in points[1].items():
        moved = np.linalg.norm(w - start[name])
        assert np.linalg.norm(points[0][name] - w) < near * moved


def edge_between(problem, there):
    """ζ from a problem's point to another one, which may have fewer parameters."""
    here = problem.at().point()
    there = {**here, **there}
    moved = {name: flat(there)[name] - x for name, x in flat(here).items()}
    slope = sum(float((g * moved[name]).sum()) for name, g in flat(problem.at().gradient()).items())
    return 1 - (float(problem.at().loss_at(there)) - float(problem.at().loss())) / slope


@pytest.mark.parametrize(
    ("framework", "method"),
    [
        *(("torch", m) for m in USED),
        *(pytest.param("jax", m, marks=pytest.mark.slow) for m in USED),
    ],
)
def test_the_realized_edge_is_of_the_step_that_was_taken(framework, method):
    train, task = trainer(framework, "mlp"), data.task("mlp", None, 0)
    (record,) = observed.observed(tiny(framework, "mlp", method, steps=1), train, 500)
    there = train.point()
    expected = edge_between(trainer(framework, "mlp", task).problem, there)
    assert record.realized_edge == pytest.approx(expected, abs=1e-9)
    if size := cells.METHODS[method].batch:
        own = next(observed.minibatches(500, size, 0))
        batch = dataclasses.replace(task, x=task.x[own], y=task.y[own])
        expected = edge_between(trainer(framework, "mlp", batch).problem, there)
        assert record.realized_edge_batch == pytest.approx(expected, abs=1e-9)
        assert abs(expected - record.realized_edge) > 1e-4
    descent = 2 / 1e-3 * (record.dual_norm if cells.METHODS[method].normalized else 1.0)
    by_hand = {} if method in ("adamw-clipped", "sgd-batches") else {"threshold_by_hand": descent}
    found = {k: x for k, x in record.extras.items() if k == "threshold_by_hand"}
    assert found == pytest.approx(by_hand)


def test_each_epoch_has_each_example_once():
    batches = observed.minibatches(7, 3, 0)
    first, second = ([*next(batches), *next(batches)] for _ in range(2))
    assert len({*first}) == len({*second}) == 6
    assert first != second
