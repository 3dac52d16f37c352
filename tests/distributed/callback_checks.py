"""What runs on each rank for test_callbacks.py: the callbacks of training frameworks on sharded
modules, and on replicated ones."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import geodiag
from geodiag_torch import callbacks
from tests.distributed.ddp_checks import same_everywhere
from tests.distributed.problems import CLOSE, batches, criterion, network, relative
from tests.geodiag_torch.trainers import hide_torchvision

STEPS = 3


def shards(model: nn.Module) -> nn.Module:
    for layer in model:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def check(rank: int, callback: Any, model: nn.Module, data: Any) -> None:
    """Both ranks have all records, of all data: the first is of the network at the start."""
    assert [r.step for r in callback.records] == [0, 1, 2]
    problem = geodiag.problem(shards(network()), criterion=criterion("mean"), data=data)
    loss, expected = problem.at().loss(), geodiag.sharpness(problem)
    assert not any(r.note for r in callback.records[1:]), callback.records
    close(callback.records[0], loss, expected.value)
    for p in model.parameters():
        same_everywhere(float(p.full_tensor().sum()))  # type: ignore[attr-defined]


def close(record: Any, loss: Any, sharpness: float) -> None:
    """A record is of that loss; its search of S is a short one, from below."""
    assert relative(record.loss, float(loss)) < CLOSE
    assert 0.9 * sharpness < record.sharpness < (1 + CLOSE) * sharpness


def monitor(name: str) -> Any:
    """The class; its framework is imported now."""
    hide_torchvision()
    warnings.simplefilter("ignore")  # the frameworks' advice, and torch's on what they call
    return getattr(callbacks, name)


def huggingface(rank: int) -> None:
    """The events of a Trainer, in its order, on a module that is sharded as Accelerate does it."""
    data = batches((4, 4))[rank]
    x, y = data
    model = shards(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state, control = trainer_state(rank), SimpleNamespace(should_log=False)
    callback = monitor("HuggingFaceMonitor")(
        norm="l2", every=1, loss_fn=lambda model, batch: criterion("mean")(model(batch[0]), y)
    )
    arguments: Any = {"model": model, "optimizer": optimizer}
    callback.on_train_begin(None, state, control, **arguments)
    for _ in range(STEPS):
        optimizer.zero_grad()
        criterion("mean")(model(x), y).backward()
        callback.on_pre_optimizer_step(None, state, control, **arguments)
        optimizer.step()
        state.global_step += 1
        callback.on_step_end(None, state, control, **arguments)
    callback.on_train_end(None, state, control, **arguments)
    assert len(state.log_history) == len(callback.records)
    check(rank, callback, model, [data])


def trainer_state(rank: int) -> Any:
    return SimpleNamespace(
        is_world_process_zero=rank == 0, global_step=0, log_history=[], epoch=0.0
    )


def replicated(rank: int) -> None:
    """A plain module is measured on rank zero alone, without a word to the others, or together."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batches((4, 4))[rank]
    first, second = (dist.new_group([i]) for i in (0, 1))  # on the other, a mark: it is not in it
    groups = ((None, [0]), (first, [0]), (second, [1]), (dist.group.WORLD, [0, 1]))
    for group, ranks in groups:
        callback = monitor("HuggingFaceMonitor")(
            norm="l2", every=1, loss_fn=lambda m, batch: criterion("mean")(m(batch[0]), batch[1]),
            data=[(x, y)], process_group=group,
        )  # fmt: skip
        state = trainer_state(rank)
        callback.on_train_begin(None, state, None, model=model, optimizer=optimizer)
        for _ in range(STEPS):
            optimizer.step()
        callback.on_train_end(None, state, SimpleNamespace(should_log=False))
        assert len(callback.records) == len(state.log_history) == (STEPS if rank in ranks else 0)
        data = batches((4, 4)) if len(ranks) == 2 else [(x, y)]
        problem = geodiag.problem(model, criterion=criterion("mean"), data=data)
        for record in callback.records:
            close(record, problem.at().loss(), geodiag.sharpness(problem).value)


def synchronised_batch_norm(rank: int) -> None:
    """A warning on every rank, and no measurement: one rank alone would wait for the others."""
    model = nn.Sequential(nn.Linear(5, 7), nn.SyncBatchNorm(7))
    callback = monitor("HuggingFaceMonitor")(norm="l2", data=[batches((4,))[0]])
    arguments = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with pytest.warns(RuntimeWarning, match="nothing is measured: EngineError: SyncBatchNorm"):
        callback.on_train_begin(None, trainer_state(rank), None, **arguments)
    arguments["optimizer"].step()
    assert callback.records == []


def a_failure_on_one_rank(rank: int) -> None:
    """Before the first message (no data), in a pass, and after it (a log that cannot be opened):
    one warning on every rank, and the training goes on, whose own messages are not mixed up."""
    x, y = batches((4, 4))[rank]
    for fault in ("empty", "loss", "log"):
        model = nn.parallel.DistributedDataParallel(network())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(model: nn.Module, batch: Any, fault: str = fault) -> Any:
            if fault == "loss" and rank == 1:
                raise KeyError("on rank 1")
            return criterion("mean")(model(batch[0]), batch[1])

        callback = monitor("HuggingFaceMonitor")(
            norm="l2", every=1, loss_fn=loss,
            data=[] if fault == "empty" and rank == 1 else [(x, y)],
            log="/dev/null/run.jsonl" if fault == "log" else None,
        )  # fmt: skip
        state = trainer_state(rank)
        with pytest.warns(RuntimeWarning, match="nothing is measured") as caught:
            callback.on_train_begin(None, state, None, model=model, optimizer=optimizer)
        assert len([w for w in caught if "geodiag" in str(w.message)]) == 1
        for _ in range(STEPS):
            optimizer.zero_grad()
            criterion("mean")(model(x), y).backward()
            optimizer.step()
        callback.on_train_end(None, state, SimpleNamespace(should_log=False))
        assert callback.records == []
        for p in model.parameters():
            same_everywhere(float(p.sum()))


def lightning(rank: int) -> None:
    """Its own Trainer, whose strategy shards the module with fully_shard."""
    kind = monitor("LightningMonitor")
    import lightning.pytorch as pl
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def configure_model(self) -> None:
            shards(self.net)

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> Any:
            return criterion("mean")(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    x, y = (torch.cat(parts) for parts in zip(*batches((4, 4)), strict=True))
    callback = kind("l2", criterion=criterion("mean"), every=1)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, max_epochs=STEPS, callbacks=[callback], logger=False,
        strategy=pl.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        plugins=[TorchElasticEnvironment()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Module()
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    trainer.fit(module, loader)
    own = [b for i, b in enumerate(DataLoader(TensorDataset(x, y), batch_size=1)) if i % 2 == rank]
    check(rank, callback, module, own)
    assert float(trainer.callback_metrics["geodiag/sharpness"]) > 0
