"""A small problem whose batches are ragged and not shared evenly, and its single-process truth."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

import geodiag
from geodiag.blocks import map_blocks, namespace
from tests import truth

KINDS = ("l2", "linf", "spectral", "group")
# Both sides sum the same numbers in another order. Rounding, of 1e-16, and central differences,
# good to 4e-11, change the value by far less than the 1e-6 that is promised, where both sides take
# the same steps: in Lanczos, and in an ascent from an equal start. From random starts, rounding may
# lead the ascents to different local maxima.
CLOSE = 1e-6
TRUTHS = {"group": "frobenius"}  # names in tests.truth, where they differ


class GroupLinf(geodiag.Norm):
    """The largest ℓ2 norm of a tensor, as a user writes a norm."""

    def value(self, d: Any) -> Any:
        xp = namespace(d)
        return xp.max(xp.stack([xp.sqrt(xp.sum(x * x)) for x in d.values()]))

    def lmo(self, g: Any) -> Any:
        xp = namespace(g)

        def unit(x: Any) -> Any:
            length = xp.sqrt(xp.sum(x * x))
            return x / xp.where(length > 0, length, xp.ones_like(length))

        return map_blocks(unit, g)


def norm(kind: str) -> Any:
    return GroupLinf() if kind == "group" else kind


def device() -> torch.device:
    """The rank's GPU, or the CPU."""
    if torch.cuda.device_count() >= 2 and torch.cuda.is_initialized():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """5-7-3: uneven on two ranks, with vectors and matrices, tall and wide."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    return layers.to(device(), dtype)


def trained(steps: int = 20) -> nn.Module:
    """The network after some steps of gradient descent."""
    model = network()
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        criterion("mean")(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def batches(sizes: tuple[int, ...] = (4, 4, 6, 3, 5), dtype: torch.dtype = torch.float64) -> Any:
    """Batches (x, y) of these sizes."""
    generator = torch.Generator().manual_seed(1)

    def draw(n: int, width: int) -> torch.Tensor:
        return torch.randn(n, width, generator=generator, dtype=dtype).to(device())

    return [(draw(n, 5), draw(n, 3)) for n in sizes]


def shard(rank: int) -> Any:
    """Three batches for the first rank, two, ragged, for the second: of the five above."""
    return batches()[:3] if rank == 0 else batches()[3:]


def criterion(reduction: str) -> Any:
    return nn.MSELoss(reduction=reduction)


def alone(model: nn.Module, kind: str, reduction: str = "mean", **options: Any) -> Any:
    """The single-process result on the union of the data."""
    return geodiag.sharpness(
        model,
        norm(kind),
        criterion=criterion(reduction),
        reduction=reduction,
        data=batches(),
        **options,
    )


def together(
    model: nn.Module, rank: int, kind: str, reduction: str = "mean", **options: Any
) -> Any:
    """This rank's result on its shard."""
    return geodiag.sharpness(
        model,
        norm(kind),
        criterion=criterion(reduction),
        reduction=reduction,
        data=shard(rank),
        **options,
    )


def agree(found: Any, expected: Any, ask: Any, model: nn.Module, kind: str) -> None:
    """``found`` on the ranks is as good as ``expected`` in one process.

    Both attain their values. ``ask(**options)``, on the ranks, and a measurement in one process
    have equal values and directions from an equal start, by Lanczos or by the steps of one ascent.
    """
    options: dict[str, Any] = {"start": expected}
    if kind != "l2":
        options |= {"estimator": geodiag.estimators.Ascent(starts=1), "max_hvps": 6}
    for result in (found, expected):
        assert relative(attained(model, kind, result.direction), result.value) < CLOSE, kind
    one, ours = alone(model, kind, **options), ask(**options)
    assert relative(ours.value, one.value) < CLOSE, (kind, ours, one)
    for name, x in one.direction.items():
        # Up to sign; directions are fixed by the value to the root of its accuracy.
        overlap = abs(float((whole(ours.direction[name]) * x).sum()))
        assert abs(overlap - float(x.square().sum())) < 1e-3, (kind, name)


def attained(model: nn.Module, kind: str, direction: Any) -> float:
    """⟨d, Hd⟩/‖d‖² of the mean loss on the union: torch's own product, and the norm's formula."""
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    point = {name: p.detach() for name, p in model.named_parameters()}
    d = {name: whole(direction[name]) for name in point}

    def loss(params: Any) -> torch.Tensor:
        return nn.functional.mse_loss(torch.func.functional_call(model, params, (x,)), y)

    (product,) = torch.func.vjp(torch.func.grad(loss), point)[1](d)
    value, _ = truth.NORMS[TRUTHS.get(kind, kind)]
    mine, image = ({n: t.cpu().numpy() for n, t in blocks.items()} for blocks in (d, product))
    return truth.inner(mine, image) / value(mine) ** 2


def whole(x: torch.Tensor) -> torch.Tensor:
    """All entries of a tensor, whether sharded or not."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def relative(a: float, b: float) -> float:
    return abs(a - b) / abs(b)
