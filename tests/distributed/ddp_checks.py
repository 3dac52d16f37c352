"""What runs on each rank for test_ddp.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import group
from torch.nn.parallel import DistributedDataParallel

import geodiag
from geodiag import errors
from geodiag.core.batch_forms import ONE_BATCH
from tests.distributed.problems import (
    CLOSE,
    KINDS,
    agree,
    alone,
    batches,
    criterion,
    network,
    relative,
    shard,
    together,
    trained,
)
from tests.geodiag_torch.models import fingerprint


def same_everywhere(value: float) -> None:
    """Bit for bit."""
    mine = torch.tensor([value], dtype=torch.float64)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    assert len({float(x) for x in found}) == 1, found


def equal_the_union(rank: int) -> None:
    """All norms, both reductions, several engines."""
    model = trained()
    ddp = DistributedDataParallel(trained())
    before = fingerprint(ddp)
    for kind in KINDS:
        expected = alone(model, kind)
        found = together(ddp, rank, kind)
        same_everywhere(found.value)
        agree(found, expected, lambda k=kind, **asked: together(ddp, rank, k, **asked), model, kind)
    expected = alone(model, "l2", "sum")
    for engine in ("graph", "recompute", "finite-difference"):
        found = together(ddp, rank, "l2", "sum", engine=engine)
        assert relative(found.value, expected.value) < CLOSE, engine
    assert fingerprint(ddp) == before


def one_batch_each(rank: int) -> None:
    """A single ragged batch per rank is weighted by its size, and a sum is not."""
    model = network()
    first, second = batches((4, 9))
    mine = first if rank == 0 else second
    for reduction in ("mean", "sum"):
        options = {"criterion": criterion(reduction), "reduction": reduction}
        expected = geodiag.sharpness(model, data=[first, second], **options)
        found = geodiag.sharpness(model, data=mine, process_group=group.WORLD, **options)
        assert relative(found.value, expected.value) < CLOSE
        assert not found.notes
        if reduction == "mean":  # as next(iter(loader)) gives it
            found = geodiag.sharpness(model, data=[*mine], process_group=group.WORLD, **options)
            assert relative(found.value, expected.value) < CLOSE
            assert found.notes == (ONE_BATCH,)


def targets_left_out(rank: int) -> None:
    """Each rank counts the targets that are left to it."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 4).double(), torch.randn(9, 3).double(), torch.arange(9) % 4
    y[[0, 1, 2, 6]] = -100
    options = {"criterion": nn.CrossEntropyLoss(weight=torch.arange(1.0, 5).double())}
    expected = geodiag.sharpness(model, data=(x, y), **options)
    mine = (x[:4], y[:4]) if rank == 0 else (x[4:], y[4:])
    found = geodiag.sharpness(model, data=mine, process_group=group.WORLD, **options)
    assert relative(found.value, expected.value) < CLOSE


def other_questions(rank: int) -> None:
    """Losses, gradients, products, stacks and directional smoothness: as on the union."""
    model = network()
    options = {"criterion": criterion("mean")}
    union = geodiag.problem(model, data=batches(), **options).at()
    ours = geodiag.problem(model, data=shard(rank), process_group=group.WORLD, **options).at()
    torch.manual_seed(3)
    d = {name: torch.randn_like(x) for name, x in union.point().items()}
    ds = {name: torch.stack([x, 2 * x, x - 1, x + 1, -x]) for name, x in d.items()}
    moved = {name: x + 0.1 * d[name] for name, x in union.point().items()}
    torch.testing.assert_close(ours.loss(), union.loss())
    torch.testing.assert_close(ours.gradient(), union.gradient())
    torch.testing.assert_close(ours.hvp(d), union.hvp(d))
    torch.testing.assert_close(ours.hvps(ds), union.hvps(ds))
    torch.testing.assert_close(ours.hvps(ds), union.hvps(ds))
    torch.testing.assert_close(ours.loss_at(moved), union.loss_at(moved))
    torch.testing.assert_close(ours.gradient_at(moved), union.gradient_at(moved))
    for kind in ("remainder", "pointwise"):
        expected = geodiag.directional_smoothness(union, d, "linf", kind=kind)
        assert (
            relative(geodiag.directional_smoothness(ours, d, "linf", kind=kind), expected) < CLOSE
        )


def kept_and_recomputed(rank: int) -> None:
    """memory= is met on one rank and exceeded on the other: both recompute."""
    model = network()
    data = batches((2, 2)) if rank == 0 else batches((200, 200))
    options = {"criterion": criterion("mean"), "memory": 20_000, "process_group": group.WORLD}
    found = geodiag.sharpness(model, data=data, **options)
    assert any("recompute" in note for note in found.notes), found.notes
    same_everywhere(found.value)


def alone_on_rank_0(rank: int) -> None:
    """A plain module never communicates, and neither does a DDP one whose group has gone."""
    ddp = DistributedDataParallel(network())
    dist.barrier()
    if rank == 0:
        expected = alone(network(), "l2", rtol=1e-2).value
        assert alone(ddp.module, "l2", rtol=1e-2).value == expected
    dist.barrier()
    dist.destroy_process_group()
    assert alone(ddp, "l2", rtol=1e-2).value == alone(network(), "l2", rtol=1e-2).value


def subgroups(rank: int) -> None:
    """A group of one rank, a group of the two others, and a rank outside of it."""
    pair, single = dist.new_group([0, 1]), dist.new_group([2])
    model = network()
    if rank == 2:
        expected = alone(model, "l2").value
        assert alone(model, "l2", process_group=single).value == expected
        with pytest.raises(geodiag.errors.ArgumentError, match="process_group="):
            alone(model, "l2", process_group=pair)
    else:
        found = together(model, rank, "linf", process_group=pair)

        def ask(**options: Any) -> Any:
            return together(model, rank, "linf", process_group=pair, **options)

        agree(found, alone(model, "linf"), ask, model, "linf")


def synchronised_batch_norm(rank: int) -> None:
    """It is refused where it would communicate, and equal to its like elsewhere."""
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).double()
    data, both = shard(rank), {"criterion": nn.MSELoss(), "max_hvps": 8}
    truth = geodiag.sharpness(model.eval(), data=data, **both).value
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert geodiag.sharpness(synchronised, data=data, **both).value == truth
    with pytest.raises(errors.EngineError, match="SyncBatchNorm in training mode"):
        geodiag.sharpness(synchronised.train(), data=data, **both)
    with pytest.raises(errors.EngineError, match="SyncBatchNorm in training mode"):
        geodiag.sharpness(synchronised, data=data, process_group=group.WORLD, **both)
