"""One cell of an optimizer as people use it: the records of a Monitor on it.

Their norm is the optimizer's own, read from it, and so is the threshold, where one is known. The
extras of each record are

    threshold_by_hand   where none is known: that of the descent without momentum and decay
    realized_edge_batch ζ of the same step on its mini-batch, where there is one
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from geodiag.blocks import subtract
from geodiag.experiments.reproduction.cells import METHODS, Cell
from geodiag.experiments.reproduction.data import Floats
from geodiag.experiments.reproduction.frameworks import Trainer
from geodiag.optimizers.thresholds import threshold
from geodiag.realized_edge import realized_edge
from geodiag.records import Record


def observed(cell: Cell, trainer: Trainer, examples: int) -> Iterator[Record]:
    """Train to the end, on mini-batches of the ``examples`` where the method has them.

    Yields:
        Record: each measured step.

    Raises:
        NonFiniteError: training diverged.
    """
    method = METHODS[cell.method]
    records = trainer.observe(method.optimizer, cell.lr, method.options, cell.every)
    batches = minibatches(examples, method.batch or examples, cell.seed)
    for step in range(cell.steps):
        due = step % cell.every == 0
        if method.batch:
            trainer.set_batch(next(batches))
        before = trainer.point() if due and method.batch else {}
        trainer.step()
        if not due:
            continue
        record, extra = records[-1], {}
        if math.isnan(record.threshold):
            edge = threshold(cell.lr, normalized=method.normalized, dual_norm=record.dual_norm)
            extra["threshold_by_hand"] = float(edge)
        if before:
            moved = subtract(trainer.point(), before)
            extra["realized_edge_batch"] = float(realized_edge(trainer.on_batch(before), moved))
        yield replace(record, extras=record.extras | extra)


def minibatches(examples: int, size: int, seed: int) -> Iterator[Floats]:
    """The numbers of the examples of each batch, drawn without replacement, epoch by epoch."""
    rng = np.random.default_rng(seed)
    while True:
        shuffled = rng.permutation(examples)
        yield from shuffled[: examples - examples % size].reshape(-1, size)
