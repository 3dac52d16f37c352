"""Rules for operations on sharded tensors that need not gather them, beyond elementwise ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geodiag_torch.sharding.tensors import RULES, AxisSharding, Rule, Sharded, local_like


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule for torch's functions of these names."""

    def enter(f: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, f))
        return f

    return enter


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], at: int, *names: str) -> Any:
    """An argument, by its place or one of its names; None where it was left out."""
    if len(args) > at:
        return args[at]
    return next((kwargs[name] for name in names if name in kwargs), None)


def _reduction(combine: Callable[..., Tensor], empty: float) -> Rule:
    """``combine`` over axes; ``empty``: its value over no entries at all."""

    def reduce(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, dims = args[0], _argument(args, kwargs, 1, "dim", "axis")
        if not isinstance(x, Sharded) or isinstance(dims, Tensor):
            return NotImplemented
        keep = bool(_argument(args, kwargs, 2, "keepdim", "keepdims"))
        dtype = kwargs.get("dtype")
        local = x._local_tensor if dtype is None else x._local_tensor.to(dtype)
        listed = range(x.ndim) if dims is None or dims == () else dims
        axes = tuple(d % x.ndim for d in ([listed] if isinstance(listed, int) else listed))
        if x.sharded_dim not in axes:
            out = combine(local, dim=axes, keepdim=keep)
            return x.sharding.wrap(
                out, x.sharded_dim - (0 if keep else sum(d < x.sharded_dim for d in axes))
            )
        if not local.shape[x.sharded_dim]:
            shape = [n if d != x.sharded_dim else 1 for d, n in enumerate(local.shape)]
            local = local.new_full(shape, _in_range(empty, local.dtype))
        out = combine(local, dim=axes, keepdim=keep)
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
def extremum(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Over all entries, or elementwise of two tensors; along an axis they return indices too."""
    if len(args) > 1 or kwargs:
        elementwise = len(args) == 2 and isinstance(args[1], Tensor)
        return RULES["maximum"](func, args, kwargs) if elementwise else NotImplemented
    return RULES["a" + func.__name__](func, args, kwargs)


@rule("mean")
def mean(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Over all entries or axes."""
    dims = _argument(args, kwargs, 1, "dim", "axis")
    x = args[0]
    listed = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    total = RULES["sum"](func, args, kwargs)
    if total is NotImplemented:
        return total
    with torch._C._EnableTorchFunction():
        return total / math.prod(x.shape[d] for d in listed)


@rule("argmax")
def argmax(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Of a vector."""
    x = args[0]
    if not isinstance(x, Sharded) or x.ndim != 1 or kwargs.get("keepdim"):
        return NotImplemented
    local = x._local_tensor
    none = local.new_full((1,), _in_range(-math.inf, local.dtype))
    best = torch.argmax(local) if local.numel() else torch.zeros((), dtype=torch.int64)
    values = x.sharding.all_gather(local[best].reshape(1) if local.numel() else none)
    places = x.sharding.all_gather((best.to(local.device) + x.sharding.span[0]).reshape(1))
    rank = torch.argmax(torch.cat(values))
    return torch.cat(places)[rank]


@rule("reshape", "view", "flatten")
def reshape(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Where the sharded axis stays outermost: merged with those after it, or split again."""
    x, shape = args[0], args[1:]
    if func.__name__ == "flatten":
        if len(args) > 1 or kwargs:
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
        sharding: AxisSharding | None = None
        if inner % after == 0:
            sharding = x.sharding.scaled(inner // after)
        elif inner and after % inner == 0:
            sharding = x.sharding.divided(after // inner)
        if sharding is not None and sharding.length == shape[dim]:
            local = (*shape[:dim], sharding.span[1], *shape[dim + 1 :])
            return sharding.wrap(x._local_tensor.reshape(local), dim)
    return NotImplemented


@rule("swapaxes", "transpose", "swapdims", "__get__")
def swapaxes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Exchange two axes."""
    x, a, b = args
    axes = list(range(x.ndim))
    axes[a], axes[b] = axes[b], axes[a]
    return permute(func, (x, axes), {})


@rule("permute")
def permute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Reorder the axes."""
    x = args[0]
    dims = kwargs.get("dims", args[1:])
    axes = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    axes = [d % x.ndim for d in axes]
    return x.sharding.wrap(x._local_tensor.permute(axes), axes.index(x.sharded_dim))


@rule("unsqueeze")
def unsqueeze(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A new axis of length one."""
    x, at = args[0], _argument(args, kwargs, 1, "dim")
    at %= x.ndim + 1
    return x.sharding.wrap(x._local_tensor.unsqueeze(at), x.sharded_dim + (at <= x.sharded_dim))


@rule("__getitem__")
def getitem(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """By integers, slices, None and ``...``, with the whole of the sharded axis."""
    x, index = args
    index = index if isinstance(index, tuple) else (index,)
    kinds = (int, slice, type(None), type(Ellipsis))
    if not all(isinstance(i, kinds) and not isinstance(i, bool) for i in index):
        return NotImplemented
    used = sum(i is not None and i is not Ellipsis for i in index)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    full = (*index[:at], *[slice(None)] * (x.ndim - used), *index[at + 1 :])
    old = new = 0
    place = None
    for i in full:
        if i is not None:
            if old == x.sharded_dim:
                if i != slice(None):
                    return NotImplemented
                place = new
            old += 1
        new += not isinstance(i, int)
    assert place is not None
    return x.sharding.wrap(x._local_tensor[full], place)


@rule("__setitem__")
def setitem(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A number where a boolean mask is true."""
    x, mask, value = args
    masked = isinstance(x, Sharded) and isinstance(mask, Sharded) and mask.dtype == torch.bool
    if not masked or isinstance(value, Tensor) or mask.shape != x.shape:
        return NotImplemented
    x._local_tensor[local_like(x, mask, x.sharded_dim)] = value
    return None


def _local_parts(args: tuple[Any, ...], at: int) -> tuple[Sharded, list[Tensor]] | None:
    """The local parts of tensors with as many axes, where ``at`` is not the sharded axis."""
    tensors = list(args[0])
    first = next((x for x in tensors if isinstance(x, Sharded)), None)
    if first is None or at == first.sharded_dim or any(x.ndim != first.ndim for x in tensors):
        return None
    return first, [local_like(first, x, first.sharded_dim) for x in tensors]


@rule("stack")
def stack(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Along a new axis."""
    at = _argument(args, kwargs, 1, "dim", "axis") or 0
    found = _local_parts(args, -1)
    if found is None:
        return NotImplemented
    first, locals_ = found
    at %= first.ndim + 1
    return first.sharding.wrap(
        torch.stack(locals_, at), first.sharded_dim + (at <= first.sharded_dim)
    )


@rule("cat", "concat", "concatenate")
def concat(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Along an axis that is not the sharded one."""
    at = _argument(args, kwargs, 1, "dim", "axis") or 0
    found = _local_parts(args, at % args[0][0].ndim)
    if found is None:
        return NotImplemented
    first, locals_ = found
    return first.sharding.wrap(torch.cat(locals_, at), first.sharded_dim)


@rule("index_select")
def index_select(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Along an axis that is not the sharded one."""
    if kwargs or not isinstance(args[0], Sharded) or args[1] % args[0].ndim == args[0].sharded_dim:
        return NotImplemented
    x, at, index = args
    return x.sharding.wrap(x._local_tensor.index_select(at, index), x.sharded_dim)


@rule("matmul", "__matmul__", "mm")
def matmul(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows, columns or the inner dimension may be sharded; of two, the right one is gathered."""
    a, b = args
    if min(a.ndim, b.ndim) < 2:
        return NotImplemented
    if isinstance(a, Sharded):
        if a.sharded_dim == a.ndim - 1:
            return a.sharding.all_reduce(a._local_tensor @ local_like(a, b, -2))
        if a.sharded_dim == a.ndim - 2:
            right = b.full() if isinstance(b, Sharded) else b
            return a.sharding.wrap(a._local_tensor @ right, -2)
    elif b.sharded_dim == b.ndim - 1:
        return b.sharding.wrap(a @ b._local_tensor, -1)
    elif b.sharded_dim == b.ndim - 2:
        return b.sharding.all_reduce(local_like(b, a, -1) @ b._local_tensor)
    return NotImplemented


@rule("tensordot")
def tensordot(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As for matrices: the sharded axis may be contracted, or kept."""
    a, b = args[:2]
    dims = _argument(args, kwargs, 2, "dims")
    if isinstance(dims, int):
        dims = (range(a.ndim - dims, a.ndim), range(dims))
    over_a, over_b = [d % a.ndim for d in dims[0]], [d % b.ndim for d in dims[1]]
    free_a = [d for d in range(a.ndim) if d not in over_a]
    free_b = [d for d in range(b.ndim) if d not in over_b]
    if isinstance(a, Sharded):
        if a.sharded_dim in over_a:
            right = local_like(a, b, over_b[over_a.index(a.sharded_dim)])
            return a.sharding.all_reduce(torch.tensordot(a._local_tensor, right, (over_a, over_b)))
        right = b.full() if isinstance(b, Sharded) else b
        out = torch.tensordot(a._local_tensor, right, (over_a, over_b))
        return a.sharding.wrap(out, free_a.index(a.sharded_dim))
    if b.sharded_dim in over_b:
        left = local_like(b, a, over_a[over_b.index(b.sharded_dim)])
        return b.sharding.all_reduce(torch.tensordot(left, b._local_tensor, (over_a, over_b)))
    out = torch.tensordot(a, b._local_tensor, (over_a, over_b))
    return b.sharding.wrap(out, len(free_a) + free_b.index(b.sharded_dim))


@rule("linalg_svd")
def svd(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Of the gathered matrix, on every rank; the factor with the sharded axis is sharded too."""
    x = args[0]
    if not isinstance(x, Sharded) or x.sharded_dim < x.ndim - 2:
        return NotImplemented
    u, s, vh = func(x.full(), *args[1:], **kwargs)
    rows = x.sharded_dim == x.ndim - 2
    if rows:
        u = x.sharding.wrap(x.sharding.local_part(u, -2).clone(), -2)
    else:
        vh = x.sharding.wrap(x.sharding.local_part(vh, -1).clone(), -1)
    return torch.return_types.linalg_svd((u, s, vh))  # type: ignore[attr-defined]


@rule("linalg_qr")
def qr(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Of the gathered matrix, on every rank; Q is sharded by rows as the matrix was."""
    x = args[0]
    if not isinstance(x, Sharded) or x.sharded_dim != x.ndim - 2:
        return NotImplemented
    q, r = func(x.full(), *args[1:], **kwargs)
    q = x.sharding.wrap(x.sharding.local_part(q, -2).clone(), -2)
    return torch.return_types.linalg_qr((q, r))  # type: ignore[attr-defined]
