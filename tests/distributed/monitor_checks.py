"""What runs on each rank for test_monitor.py: training with DDP, measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import geodiag
import geodiag_torch
from tests.distributed.ddp_checks import same_everywhere
from tests.distributed.problems import CLOSE, batches, criterion, network, relative, shard
from tests.geodiag_torch.models import Calls

STEPS = 6


def train(model: nn.Module, data: Any, x: Any = None, **options: Any) -> Any:
    """Full-batch gradient descent, on ``x`` if given; returns the attached monitor."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = geodiag_torch.attach(
        optimizer, model, criterion=criterion("mean"), data=data, **{"every": 2} | options
    )
    x, y = (torch.cat(parts) for parts in zip(*(data if x is None else x), strict=True))
    for _ in range(STEPS):
        optimizer.zero_grad()
        criterion("mean")(model(x), y).backward()
        optimizer.step()
    found.detach()
    return found


def attached(rank: int, folder: str) -> None:
    """The records are those of one process with all of the data, and rank 0 alone writes them."""
    # Shards of equal size, for DDP averages the ranks' gradients without weights.
    data = batches((4, 4, 4, 4))
    truth = train(network(), data)
    path = f"{folder}/run.jsonl"
    written: list[Any] = []
    model = DistributedDataParallel(network())
    found = train(model, data[2 * rank : 2 * rank + 2], log=[path, written.append])
    assert [r.step for r in found.records] == [r.step for r in truth.records] == [0, 2, 4]
    for ours, expected in zip(found.records, truth.records, strict=True):
        assert not ours.note, ours.note
        for field in ("loss", "sharpness", "directional_smoothness", "curvature", "ratio"):
            a, b = getattr(ours, field), getattr(expected, field)
            # D divides a difference of losses, of 1e-16, by the square of a step of 0.1.
            assert relative(a, b) < CLOSE, (field, a, b)
        same_everywhere(ours.sharpness)
    torch.distributed.barrier()
    assert len(written) == (3 if rank == 0 else 0)
    assert len(geodiag.read_records(path)) == 3


def budgeted(rank: int) -> None:
    """Under a budget of time, or a rule that differs, rank 0 decides when to measure."""
    data = batches((4, 4, 4, 4))[2 * rank : 2 * rank + 2]
    for options in ({"every": 1, "budget": 0.5}, {"every": lambda step: step % (2 + rank) == 0}):
        found = train(DistributedDataParallel(network()), data, **options)
        assert not any(r.note for r in found.records), found.records
        mine = float(sum(2.0**r.step for r in found.records))
        same_everywhere(mine)
    assert [r.step for r in found.records] == [0, 2, 4]


def failing(rank: int, folder: str) -> None:
    """A loss that fails on one rank is a note in the records of both; training goes on."""
    calls = Calls()

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if calls.add() == 12 and rank == 1:
            raise ValueError("the user's own")
        x, y = batch
        return nn.functional.mse_loss(model(x), y)

    model = DistributedDataParallel(network())
    monitor = geodiag.Monitor(model, "linf", lr=0.1, loss_fn=loss, data=shard(rank), every=1)
    with monitor:
        for step in range(3):
            monitor.before(step)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(0.99)
            monitor.after()
    notes = [r.note for r in monitor.records]
    assert sum("the user's own" in note for note in notes) == 1, notes
    assert rank == 1 or any("rank 1 met an error" in note for note in notes)
    assert monitor.records[-1].sharpness == pytest.approx(monitor.records[1].sharpness, rel=0.5)
    same_everywhere(monitor.records[-1].sharpness)
