"""What runs on each rank for test_faults.py: one rank fails, and the others hear of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import group
from torch.nn.parallel import DistributedDataParallel

import geodiag
from geodiag import errors
from tests.distributed.problems import (
    CLOSE,
    agree,
    alone,
    batches,
    criterion,
    network,
    relative,
    shard,
    together,
)
from tests.geodiag_torch.models import Calls, fingerprint

PROMPT = 45.0  # seconds, for a machine that does much else; the group's timeout is 60


class Later:
    """A loss that fails in the n-th call on one rank."""

    def __init__(self, call: int, error: Callable[[str], BaseException]) -> None:
        self.calls, self.call, self.error = Calls(), call, error

    def __call__(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.calls.add() == self.call:
            raise self.error("the user's own")
        return nn.functional.mse_loss(output, y)


def one_rank_fails(rank: int) -> None:
    """An exception in the loss at each of its first calls: one error here, one there."""
    model = DistributedDataParallel(network())
    before = fingerprint(model)
    for call in range(1, 12):
        for error in (ValueError, KeyboardInterrupt):
            loss = Later(call if rank == 1 else -1, error)
            began = time.monotonic()
            with pytest.raises(error if rank == 1 else geodiag.GeodiagError) as caught:
                geodiag.sharpness(
                    model, "linf", criterion=loss, data=shard(rank), engine="recompute"
                )
            if rank == 0:
                assert type(caught.value) is errors.DistributedError
                assert "rank 1" in str(caught.value)
                assert f"{error.__name__}: the user's own" in str(caught.value)
            assert time.monotonic() - began < PROMPT
    assert fingerprint(model) == before
    assert relative(together(model, rank, "l2").value, alone(network(), "l2").value) < CLOSE


def bad_batch(rank: int) -> None:
    """A batch of the wrong width, an empty loader, a loss that is no scalar: on rank 0 alone."""
    model, mean = network(), criterion("mean")
    wide = [*batches((4,)), (torch.ones(4, 6).double(), torch.ones(4, 3).double())]
    for bad, kind in ((wide, RuntimeError), (Empty(), errors.DataError)):
        data = bad if rank == 0 else shard(1)
        with pytest.raises(kind if rank == 0 else errors.DistributedError) as caught:
            geodiag.sharpness(model, criterion=mean, data=data, process_group=group.WORLD)
        assert rank == 0 or f"rank 0 met an error. Got: {kind.__name__}" in str(caught.value)


def told_before_a_pass(rank: int) -> None:
    """No batches, another reduction, and rows of a parameter in another order, on one rank."""
    shared = {"criterion": criterion("mean"), "process_group": group.WORLD}
    with pytest.raises(errors.DistributedError if rank else errors.DataError) as caught:
        geodiag.sharpness(network(), data=shard(rank) if rank else [], **shared)
    assert rank == 0 or "rank 0 met an error. Got: DataError" in str(caught.value)
    reduction = "mean" if rank else "sum"
    with pytest.raises(errors.DistributedError, match='reduction="sum"'):
        geodiag.sharpness(network(), data=shard(rank), reduction=reduction, **shared)
    for axis in (0, 1):
        model = network()
        if rank:
            with torch.no_grad():
                weight = next(p for p in model.parameters() if p.dim() == 2)
                weight.copy_(weight.flip(axis))
        with pytest.raises(errors.DistributedError, match="not the same on all ranks"):
            geodiag.sharpness(model, data=shard(rank), **shared)


class Empty:
    def __iter__(self) -> Any:
        return iter(())


class Once(torch.autograd.Function):
    """x², whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g


def same_fall_back(rank: int) -> None:
    """No double backward on one rank: all go on with differences, or, if asked, all raise."""

    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        r = output - y
        return (Once.apply(r) if rank == 1 else r * r).mean()

    model, shared = network(), {"process_group": group.WORLD}
    expected = alone(network(), "linf")
    for memory in (None, 10**9):

        def measured(memory: int | None = memory, **asked: Any) -> Any:
            asked |= {"criterion": loss, "data": shard(rank), "memory": memory}
            return geodiag.sharpness(model, "linf", **asked, **shared)

        found = measured()
        agree(found, expected, measured, network(), "linf")
        assert any("finite differences" in note for note in found.notes)
        assert rank == 1 or any("on rank 1, EngineError" in note for note in found.notes)
    for engine in ("graph", "recompute"):
        with pytest.raises(errors.EngineError) as caught:
            geodiag.sharpness(network(), criterion=loss, data=shard(rank), engine=engine, **shared)
        assert rank == 1 or "rank 1 could not" in str(caught.value)


def changed_on_one_rank(rank: int) -> None:
    """Parameters that one rank has written to, between two products."""
    model = network()
    problem = geodiag.problem(
        model, criterion=criterion("mean"), data=shard(rank), process_group=group.WORLD
    )
    oracle = problem.at()
    d = oracle.gradient()
    if rank == 1:
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
    with pytest.raises(errors.StaleOracle if rank == 1 else errors.DistributedError) as caught:
        oracle.hvp(d)
    assert rank == 1 or "rank 1 met an error. Got: StaleOracle" in str(caught.value)
    with pytest.raises(errors.DistributedError, match="are not the same on all ranks"):
        problem.at().loss()


def other_arguments(rank: int) -> None:
    """Other weights, seeds, starts or questions on the ranks."""
    same = {"criterion": criterion("mean"), "data": shard(rank), "process_group": group.WORLD}
    with pytest.raises(errors.DistributedError, match="not the same on all ranks"):
        geodiag.sharpness(network(seed=rank), **same)
    with pytest.raises(errors.DistributedError, match="not the same on all ranks"):
        geodiag.sharpness(network(), "linf", seed=rank, **same)
    oracle = geodiag.problem(network(), engine="graph", **same).at()
    d = oracle.gradient()
    with pytest.raises(errors.DistributedError, match=r"rank 0: a pass.*rank 1: a product"):
        oracle.loss_at(d) if rank == 0 else oracle.hvp(d)
    options = same | {"process_group": None}
    oracle = geodiag.problem(DistributedDataParallel(network()), **options).at()
    with pytest.raises(errors.DistributedError, match=r"rank 0: .*for 0 num.*rank 1: .*for 66 num"):
        oracle.loss_at(d) if rank == 0 else oracle.gradient_at(d)


def hanging(rank: int, folder: str) -> None:
    """Rank 0 has its error, with the group's timeout, while rank 1 still hangs."""
    done = Path(folder) / "done"

    def asleep(text: str) -> BaseException:
        end = time.monotonic() + 60.0
        while not done.exists():
            assert time.monotonic() < end, "rank 0 waits"
            time.sleep(0.05)
        return ValueError(text)

    loss = Later(3 if rank == 1 else -1, asleep)
    with pytest.raises(ValueError if rank == 1 else errors.DistributedError) as caught:
        geodiag.sharpness(
            network(), "linf", criterion=loss, data=shard(rank), process_group=group.WORLD
        )
    if rank == 0:
        assert "did not answer" in str(caught.value)
        done.touch()


def killed(rank: int) -> None:
    """The others' error comes at once, or with the group's timeout."""
    dead = Later(3 if rank == 1 else -1, _Killed)
    began = time.monotonic()
    with pytest.raises(errors.DistributedError, match="did not answer"):
        geodiag.sharpness(
            network(), "linf", criterion=dead, data=shard(rank), process_group=group.WORLD
        )
    assert time.monotonic() - began < PROMPT


class _Killed(Exception):
    def __init__(self, text: str) -> None:
        os.kill(os.getpid(), 9)
