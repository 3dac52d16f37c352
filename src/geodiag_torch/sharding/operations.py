"""Rules for operations on sharded tensors that need not gather them, beyond elementwise ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geodiag_torch.sharding.tensors import (
    RULES,
    Rule,
    Sharded,
    gathered,
    local_like,
)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule for torch's functions of these names."""

    def enter(f: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, f))
        return f

    return enter


def _axes(x: Tensor, dims: Any) -> tuple[int, ...]:
    """The axes that ``dims`` means in a reduction, counted from the first."""
    listed = range(x.ndim) if dims is None or dims == () else dims
    return tuple(d % x.ndim for d in ([listed] if isinstance(listed, int) else listed))


def _reduction(combine: Callable[..., Tensor], empty: float) -> Rule:
    """``combine`` over axes; ``empty``: its value over no entries at all."""

    def reduce(
        func: Any, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None, **more: Any
    ) -> Any:
        if not isinstance(x, Sharded) or isinstance(dim, Tensor) or more:
            return NotImplemented
        local = x._local_tensor if dtype is None else x._local_tensor.to(dtype)
        axes = _axes(x, dim)
        if x.sharded_dim not in axes:
            out = combine(local, dim=axes, keepdim=keepdim)
            before = 0 if keepdim else sum(d < x.sharded_dim for d in axes)
            return x.sharding.wrap(out, x.sharded_dim - before)
        if not local.shape[x.sharded_dim]:
            shape = [n if d != x.sharded_dim else 1 for d, n in enumerate(local.shape)]
            local = local.new_full(shape, _in_range(empty, local.dtype))
        out = combine(local, dim=axes, keepdim=keepdim)
        if combine is torch.sum:
            return x.sharding.all_reduce(out)
        return combine(torch.stack(x.sharding.all_gather(out)), dim=(0,))

    return reduce


def _in_range(value: float, dtype: torch.dtype) -> Any:
    if dtype.is_floating_point or math.isfinite(value):
        return value
    info = torch.iinfo(dtype)
    return info.min if value < 0 else info.max


rule("sum")(_reduction(torch.sum, 0.0))
rule("amax")(_reduction(torch.amax, -math.inf))
rule("amin")(_reduction(torch.amin, math.inf))
rule("all")(_reduction(torch.all, 1.0))
rule("any")(_reduction(torch.any, 0.0))


@rule("max", "min")
def extremum(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Over all entries, or elementwise of two tensors; along an axis they return indices too."""
    if len(args) > 1 or kwargs:
        elementwise = len(args) == 2 and isinstance(args[1], Tensor)
        return RULES["maximum"](func, *args, **kwargs) if elementwise else NotImplemented
    return RULES["a" + func.__name__](func, *args)


@rule("mean")
def mean(func: Any, x: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Over all entries or axes."""
    total = RULES["sum"](func, x, dim, *args, **kwargs)
    if total is NotImplemented:
        return total
    with torch._C._EnableTorchFunction():
        return total / math.prod(x.shape[d] for d in _axes(x, dim))


@rule("reshape", "view", "flatten")
def reshape(func: Any, x: Any, *shape: Any, **kwargs: Any) -> Any:
    """Where the sharded axis stays outermost: merged with those after it, or split again."""
    if func.__name__ == "flatten":
        if shape:
            return NotImplemented
        shape = (-1,)
    if len(shape) == 1 and not isinstance(shape[0], int):
        shape = tuple(shape[0])
    if not isinstance(x, Sharded) or kwargs or not all(isinstance(n, int) for n in shape):
        return NotImplemented
    total = math.prod(x.shape)
    if -1 in shape:
        known = -math.prod(shape)
        shape = tuple(total // known if n == -1 else n for n in shape)
    left, inner = math.prod(x.shape[: x.sharded_dim]), math.prod(x.shape[x.sharded_dim + 1 :])
    for dim in range(len(shape)):
        after = math.prod(shape[dim + 1 :])
        if not after or math.prod(shape[:dim]) != left or left * shape[dim] * after != total:
            continue
        sharding = x.sharding.scaled(inner, over=after)
        if sharding is not None and sharding.length == shape[dim]:
            local = (*shape[:dim], sharding.span[1], *shape[dim + 1 :])
            return sharding.wrap(x._local_tensor.reshape(local), dim)
    return NotImplemented


@rule("swapaxes", "transpose", "swapdims", "__get__")
def swapaxes(func: Any, x: Any, a: int, b: int) -> Any:
    """Exchange two axes."""
    axes = list(range(x.ndim))
    axes[a], axes[b] = axes[b], axes[a]
    return permute(func, x, axes)


@rule("permute")
def permute(func: Any, x: Any, *axes: Any, dims: Any = None) -> Any:
    """Reorder the axes."""
    given = axes if dims is None else dims
    listed = given[0] if len(given) == 1 and not isinstance(given[0], int) else given
    order = [d % x.ndim for d in listed]
    return x.sharding.wrap(x._local_tensor.permute(order), order.index(x.sharded_dim))


@rule("unsqueeze")
def unsqueeze(func: Any, x: Any, dim: int) -> Any:
    """A new axis of length one."""
    at = dim % (x.ndim + 1)
    return x.sharding.wrap(x._local_tensor.unsqueeze(at), x.sharded_dim + (at <= x.sharded_dim))


@rule("__getitem__")
def getitem(func: Any, x: Any, index: Any) -> Any:
    """By integers, slices, None and ``...``, with the whole of the sharded axis."""
    index = index if isinstance(index, tuple) else (index,)
    kinds = (int, slice, type(None), type(Ellipsis))
    if not all(isinstance(i, kinds) and not isinstance(i, bool) for i in index):
        return NotImplemented
    used = sum(i is not None and i is not Ellipsis for i in index)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    full = (*index[:at], *[slice(None)] * (x.ndim - used), *index[at + 1 :])
    old = new = place = 0
    for i in full:
        if i is not None:
            if old == x.sharded_dim:
                if i != slice(None):
                    return NotImplemented
                place = new
            old += 1
        new += not isinstance(i, int)
    return x.sharding.wrap(x._local_tensor[full], place)


@rule("__setitem__")
def setitem(func: Any, x: Any, mask: Any, value: Any) -> Any:
    """A number where a boolean mask is true, as in the array API's ``sign``."""
    masked = isinstance(x, Sharded) and isinstance(mask, Sharded) and mask.dtype == torch.bool
    if not masked or isinstance(value, Tensor) or mask.shape != x.shape:
        return NotImplemented
    x._local_tensor[local_like(x, mask, x.sharded_dim)] = value
    return None


@rule("stack")
def stack(func: Any, tensors: Any, dim: int = 0) -> Any:
    """Along a new axis."""
    return _joined(torch.stack, tensors, dim % (tensors[0].ndim + 1), new=True)


@rule("cat", "concat", "concatenate")
def concat(func: Any, tensors: Any, dim: int = 0) -> Any:
    """Along an axis that is not the sharded one."""
    return _joined(torch.cat, tensors, dim % tensors[0].ndim, new=False)


def _joined(join: Callable[..., Tensor], tensors: Any, at: int, new: bool) -> Any:
    """``join`` of the local parts, along the axis ``at``, which may be a ``new`` one."""
    first = next((x for x in tensors if isinstance(x, Sharded)), None)
    if first is None or any(x.ndim != first.ndim for x in tensors):
        return NotImplemented
    if at == first.sharded_dim and not new:
        return NotImplemented
    parts = [local_like(first, x, first.sharded_dim) for x in tensors]
    return first.sharding.wrap(
        join(parts, at), first.sharded_dim + (new and at <= first.sharded_dim)
    )


@rule("index_select")
def index_select(func: Any, x: Any, dim: int, index: Any) -> Any:
    """Along an axis that is not the sharded one."""
    if not isinstance(x, Sharded) or dim % x.ndim == x.sharded_dim:
        return NotImplemented
    return x.sharding.wrap(x._local_tensor.index_select(dim, index), x.sharded_dim)


@rule("matmul", "__matmul__", "mm")
def matmul(func: Any, a: Any, b: Any) -> Any:
    """Rows, columns or the inner dimension may be sharded; of two, the right one is gathered."""
    if min(a.ndim, b.ndim) < 2:
        return NotImplemented
    first, inner = (a, a.ndim - 1) if isinstance(a, Sharded) else (b, b.ndim - 2)
    if first.sharded_dim == inner:
        return first.sharding.all_reduce(local_like(first, a, -1) @ local_like(first, b, -2))
    if first.sharded_dim < first.ndim - 2:
        return NotImplemented
    if first is a:
        return a.sharding.wrap(a._local_tensor @ gathered(b), -2)
    return b.sharding.wrap(a @ b._local_tensor, -1)


@rule("tensordot")
def tensordot(func: Any, a: Any, b: Any, dims: Any = 2) -> Any:
    """As for matrices: the sharded axis may be contracted, or kept."""
    if isinstance(dims, int):
        dims = (range(a.ndim - dims, a.ndim), range(dims))
    over_a, over_b = [d % a.ndim for d in dims[0]], [d % b.ndim for d in dims[1]]
    first, over_first = (a, over_a) if isinstance(a, Sharded) else (b, over_b)
    if first.sharded_dim in over_first:
        i = over_first.index(first.sharded_dim)
        parts = local_like(first, a, over_a[i]), local_like(first, b, over_b[i])
        return first.sharding.all_reduce(torch.tensordot(*parts, (over_a, over_b)))
    place = sum(d not in over_first for d in range(first.sharded_dim))
    if first is a:
        out = torch.tensordot(a._local_tensor, gathered(b), (over_a, over_b))
        return a.sharding.wrap(out, place)
    out = torch.tensordot(a, b._local_tensor, (over_a, over_b))
    return b.sharding.wrap(out, a.ndim - len(over_a) + place)


@rule("linalg_svd")
def svd(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Of the gathered matrix, on every rank; the factor with the sharded axis is sharded too."""
    if not isinstance(x, Sharded) or x.sharded_dim < x.ndim - 2:
        return NotImplemented
    u, s, vh = func(x.full(), *args, **kwargs)
    if x.sharded_dim == x.ndim - 2:
        u = x.sharding.distribute(u, -2)
    else:
        vh = x.sharding.distribute(vh, -1)
    return torch.return_types.linalg_svd((u, s, vh))  # type: ignore[attr-defined]


@rule("linalg_qr")
def qr(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Of the gathered matrix, on every rank; Q is sharded by rows as the matrix was."""
    if not isinstance(x, Sharded) or x.sharded_dim != x.ndim - 2:
        return NotImplemented
    q, r = func(x.full(), *args, **kwargs)
    q = x.sharding.distribute(q, -2)
    return torch.return_types.linalg_qr((q, r))  # type: ignore[attr-defined]
