"""What runs on each rank for test_fsdp.py: other ways to spread parameters over ranks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Shard

import geodiag
import geodiag_torch
from tests.distributed.ddp_checks import same_everywhere
from tests.distributed.fsdp_checks import sharded, state
from tests.distributed.problems import (
    CLOSE,
    KINDS,
    agree,
    alone,
    batches,
    criterion,
    device,
    norm,
    relative,
    together,
    trained,
)


def replicas(rank: int) -> None:
    """Two copies of the parameters, each over two of four ranks, and four shards of the data."""
    mesh = init_device_mesh(device().type, (2, 2), mesh_dim_names=("replicate", "shard"))
    truth, model = trained(), sharded(mesh=mesh)
    before = state(model)
    for kind in KINDS:
        options: dict[str, Any] = {} if kind == "l2" else {"max_hvps": 16}
        options |= {"criterion": criterion("mean")}
        expected = geodiag.sharpness(truth, norm(kind), data=batches(), **options)
        found = geodiag.sharpness(model, norm(kind), data=batches()[rank::4], **options)
        same_everywhere(found.value)

        def ask(kind: str = kind, options: Any = options, **asked: Any) -> Any:
            return geodiag.sharpness(
                model, norm(kind), data=batches()[rank::4], **{**options, **asked}
            )

        agree(found, expected, ask, truth, kind)
        assert state(model) == before, kind


def placements(rank: int) -> None:
    """Matrices that are sharded by columns, and parameters that wait on the CPU."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    plain = plain.double()
    variants: tuple[dict[str, Any], ...] = (
        {"shard_placement_fn": lambda p: Shard(1) if p.shape == (6, 8) else Shard(0)},
        {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    )
    for options in variants:
        model = fully_shard(copy.deepcopy(plain), **options)
        for kind in ("l2", "spectral"):
            expected = alone(plain, kind, max_hvps=12)
            found = together(model, rank, kind, max_hvps=12)
            agree(
                found,
                expected,
                lambda m=model, k=kind, **asked: together(m, rank, k, **asked),
                plain,
                kind,
            )


def a_part(rank: int) -> None:
    """Of a part of what the optimizer moves S is as in one process, and there is no D."""
    data = batches((4, 4, 4, 4))
    mine = data[2 * rank : 2 * rank + 2]
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    for make in (torch.optim.SGD, torch.optim.Adam):
        records = []
        for model, shard_of_it in ((trained(), data), (sharded(), mine)):
            optimizer = make(model.parameters(), lr=1e-3)
            name = next(name for name, _ in model.named_parameters())
            monitor = geodiag_torch.attach(
                optimizer, model, criterion=criterion("mean"), data=shard_of_it, every=1,
                where=f"^{name}$", rtol=1e-6,
            )  # fmt: skip
            criterion("mean")(model(x), y).backward()
            optimizer.step()
            records += monitor.records
        expected, found = records
        assert relative(found.sharpness, expected.sharpness) < CLOSE, records
        assert found.directional_smoothness != found.directional_smoothness
        assert "no D, no ζ: the step also moved" in found.note
