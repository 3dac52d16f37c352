"""What runs on each rank for test_sharded.py: the array API on sharded tensors against plain ones.

Uneven shards (3 rows on 2 ranks), and ranks with none (1 row).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._pytree import tree_leaves

from geodiag import blocks
from geodiag.core.stacks import combine, cross, dots, join, one, only, pick, rescale
from geodiag.errors import ParameterError
from geodiag_torch.sharding.fsdp import sharded
from geodiag_torch.sharding.tensors import Sharded
from tests.distributed.problems import device

xp = array_api_compat.array_namespace(torch.zeros(1))
Make = Callable[..., Any]

# Each of a plain matrix or a sharded one, as x, of others like it, as y, and a plain one, as p.
# "stays": whether the answer of a sharded one is sharded too.
STAYS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "sums": lambda x, y, p: 2 * x + y - p * x / 3,
    "powers": lambda x, y, p: (x * x) ** 0.5 + x**2 - (-x) + xp.sqrt(xp.abs(x)),
    "signs": lambda x, y, p: xp.sign(x) * xp.astype(x > y, x.dtype),
    "where": lambda x, y, p: xp.where((x > 0) & (p < 1), x, xp.zeros_like(y)),
    "where with numbers": lambda x, y, p: xp.where(xp.isfinite(x), 1.0, x),
    "of a scalar": lambda x, y, p: x * p[0, 0] + xp.maximum(x, p),
    "rows and columns": lambda x, y, p: x * p[:1, :] + p[:, :1],
    "axis": lambda x, y, p: xp.sum(x, axis=1),
    "axis kept": lambda x, y, p: xp.max(x, axis=1, keepdims=True),
    "transposed": lambda x, y, p: xp.matrix_transpose(x) + p.T,
    "permuted": lambda x, y, p: xp.permute_dims(x, (1, 0)),
    "a vector": lambda x, y, p: xp.reshape(x, (-1,)),
    "and back": lambda x, y, p: xp.reshape(xp.reshape(x, (-1,)), x.shape) + y,
    "four axes": lambda x, y, p: xp.reshape(x, (x.shape[0], 2, 1, 2)),
    "a stack": lambda x, y, p: xp.stack([x, y, p]),
    "a stack behind": lambda x, y, p: xp.stack([x, p], axis=-1),
    "one": lambda x, y, p: x[None, ...][0, ...],
    "columns": lambda x, y, p: x[:, ::2],
    "last": lambda x, y, p: x[..., 1],
    "joined": lambda x, y, p: xp.concat([x, p, y], axis=1),
    "taken": lambda x, y, p: xp.take(x, torch.tensor([2, 0]), axis=1),
    "product": lambda x, y, p: x @ p.T[:, :2],
    "product on the right": lambda x, y, p: p @ x.T,
    "polar": lambda x, y, p: (lambda u, s, vh: u @ vh)(*xp.linalg.svd(x, full_matrices=False)),
    "means": lambda x, y, p: xp.mean(x, axis=1),
}
GOES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "sum": lambda x, y, p: xp.sum(x * y),
    "sum of rows": lambda x, y, p: xp.sum(x, axis=0),
    "axes": lambda x, y, p: xp.sum(x, axis=(0, 1), keepdims=True),
    "max": lambda x, y, p: xp.max(x) - xp.min(x),
    "max of rows": lambda x, y, p: xp.max(x, axis=0, keepdims=True),
    "all": lambda x, y, p: xp.all(x > -10) & ~xp.any(xp.isnan(x)),
    "mean": lambda x, y, p: xp.mean(x),
    "number of": lambda x, y, p: xp.sum(xp.astype(x > 0, xp.int32)),
    "largest": lambda x, y, p: xp.argmax(xp.abs(xp.reshape(x, (-1,)))),
    "norm": lambda x, y, p: xp.linalg.vector_norm(x),
    "Gram": lambda x, y, p: x.T @ y,
    "contracted": lambda x, y, p: p.T[:2, :] @ x,
    "both sides": lambda x, y, p: x @ xp.matrix_transpose(y),
    "singular values": lambda x, y, p: xp.linalg.svdvals(x),
    "sorted": lambda x, y, p: xp.sort(x, axis=0),
    "rows": lambda x, y, p: x[:1, :],
    "rows taken": lambda x, y, p: xp.take(x, torch.tensor([len(x) - 1, 0]), axis=0),
    "joined rows": lambda x, y, p: xp.concat([x, y]),
    "determinants": lambda x, y, p: torch.linalg.det(x.T @ x),
    "host": lambda x, y, p: torch.from_numpy(blocks.to_numpy(x)),
}


def array_api(rank: int) -> None:
    mesh = init_device_mesh(device().type, (2,))
    for rows in (3, 4, 1):
        rng = np.random.default_rng(rows)
        x, y, p = (torch.tensor(rng.standard_normal((rows, 4)), device=device()) for _ in range(3))
        sx, sy = (sharded(distribute_tensor(t, mesh, [Shard(0)])) for t in (x, y))
        for name, f in {**STAYS, **GOES}.items():
            found, expected = f(sx, sy, p), f(x, y, p)
            whole = found.full() if isinstance(found, Sharded) else found
            assert not isinstance(whole, DTensor), name
            assert found.shape == expected.shape == whole.shape, (name, rows)
            assert found.dtype == expected.dtype, name
            sign = xp.sign(whole * expected) if name == "polar" else 1
            torch.testing.assert_close(whole * sign, expected * sign, msg=f"{name}, {rows} rows")
            if name in STAYS:
                assert isinstance(found, Sharded), (name, rows)


def in_place(rank: int) -> None:
    """What writes does so in the tensor, whichever way, or says that it cannot."""
    mesh = init_device_mesh(device().type, (2,))
    base = torch.arange(12.0, device=device()).reshape(3, 4)
    x, expected = sharded(distribute_tensor(base, mesh, [Shard(0)])).clone(), base.clone()
    held = x
    for t in (x, expected):
        t += 1
        t.mul_(2)
        t[t > 10] = -1.0
        t[0, 1] = 5.0
        t[1] = 7.0
    assert held is x
    torch.testing.assert_close(x.full(), expected)
    plain = torch.zeros(3, 4, device=device())
    plain += x
    torch.testing.assert_close(plain, expected)
    parameter = torch.nn.Parameter(distribute_tensor(base, mesh, [Shard(0)]))
    with torch.no_grad():
        parameter.add_(x, alpha=0.5)
    torch.testing.assert_close(parameter.full_tensor(), base + expected / 2)
    torch.testing.assert_close(x.full_tensor(), expected)


def stacks(rank: int) -> None:
    """The arithmetic of blocks and of stacks of them."""
    mesh = init_device_mesh(device().type, (2,))
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "b": (3,), "k": (5, 2, 2), "one": (1,)}

    def draw() -> Any:
        return {n: torch.tensor(rng.standard_normal(s), device=device()) for n, s in shapes.items()}

    plain = [draw() for _ in range(3)]
    # The last tensor stays whole on every rank.
    spread = [
        {n: t if n == "one" else sharded(distribute_tensor(t, mesh, [Shard(0)]))
         for n, t in d.items()} for d in plain
    ]  # fmt: skip
    weights = torch.tensor(rng.standard_normal((2, 3)), device=device())

    def answers(ds: Any) -> Any:
        a, b, c = ds
        stacked = blocks.stack([a, b, c])
        yield blocks.dot(a, b), blocks.norm2(c), blocks.all_finite(a)
        yield blocks.axpy(blocks.dot(a, b), a, blocks.scale(c, 1 / blocks.norm2(c)))
        yield blocks.where(blocks.dot(a, b) > 0, a, b)
        yield dots(stacked, stacked), cross(stacked, blocks.stack([b, c]))
        yield combine(weights, stacked)
        yield rescale(stacked, weights[0])
        yield only(join(one(a), stacked))
        yield pick(stacked, torch.tensor([2, 0], device=device()))
        yield blocks.unstack(stacked)[1]
        yield blocks.zeros_like(a), blocks.flatten(a)

    for found, expected in itertools.zip_longest(answers(spread), answers(plain)):
        pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
        for ours, theirs in pairs:
            whole = ours.full() if isinstance(ours, Sharded) else ours
            torch.testing.assert_close(whole, theirs)
    assert isinstance(blocks.axpy(2.0, spread[0], plain[1])["w"], Sharded)


def other_placements(rank: int) -> None:
    """Replicated tensors are plain; partial sums, and two sharded axes, are refused."""
    mesh = init_device_mesh(device().type, (2,))
    base = torch.arange(12.0, device=device()).reshape(3, 4)
    by_columns = sharded(distribute_tensor(base, mesh, [Shard(1)]))
    torch.testing.assert_close(by_columns.full(), base)
    u, s, vh = xp.linalg.svd(by_columns, full_matrices=False)
    assert not isinstance(u, DTensor)
    assert isinstance(vh, Sharded)
    torch.testing.assert_close(((u * s) @ vh).full(), base)
    square = init_device_mesh(device().type, (2, 1))
    with pytest.raises(ParameterError, match="sharded in a way"):
        sharded(distribute_tensor(base, square, [Shard(0), Shard(1)]))
