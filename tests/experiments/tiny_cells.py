"""Cells of a few steps, and the trainers of both frameworks."""

from __future__ import annotations

import numpy as np
import pytest

from geodiag.experiments.reproduction import cells, data

FRAMEWORKS = ["torch", "jax"]
USED = [m for m, method in cells.METHODS.items() if method.optimizer]
DESCENTS = [m for m in cells.METHODS if m not in USED]


def tiny(framework, model, method, lr=1e-3, steps=4, **changed):
    digest = data.task(model, None, 0).digest
    settings = {"measurements": 2, "seed": 0, "data": digest} | changed
    return cells.Cell(framework, method, model, lr, steps, **settings)


def trainer(framework, model, task=None):
    module = pytest.importorskip(f"geodiag_{framework}.experiments")
    task = task or data.task(model, None, 0)
    return module.Trainer(model, task.weights, task.x, task.y)


def flat(blocks):
    return {name: np.asarray(x) for name, x in blocks.items()}
