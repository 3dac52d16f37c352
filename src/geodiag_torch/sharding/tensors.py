"""Tensors that are sharded over ranks, with the array API of plain tensors.

A :class:`Sharded` is a DTensor that computes on its local entries where it can: elementwise, in
sums over axes, in products of matrices. Small results are plain tensors, equal on every rank. An
operation without a rule (:mod:`geodiag_torch.sharding.operations`) gathers the tensor on every
rank: its result is right, but takes more memory. So a norm may use the whole array API. Every rank
must issue the same operations in the same order.

DTensor's own operators refuse to mix with plain tensors and with shards of uneven sizes.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.utils._pytree import tree_leaves, tree_map

from geodiag.errors import ParameterError
from geodiag_torch.ranks import SMALL, all_gather, all_reduce

Rule = Callable[..., Any]  # of the function of torch, and its arguments


@dataclass(frozen=True)
class AxisSharding:
    """How one dimension of tensors is sharded over one axis of a mesh; others replicate."""

    mesh: DeviceMesh
    axis: int  # of the mesh
    sizes: tuple[int, ...]  # the length of the dimension on each rank

    @property
    def group(self) -> dist.ProcessGroup:
        return self.mesh.get_group(self.axis)

    @property
    def span(self) -> tuple[int, int]:
        """Where this rank's entries begin in the dimension, and how many they are."""
        rank = self.mesh.get_local_rank(self.axis)
        return sum(self.sizes[:rank]), self.sizes[rank]

    @property
    def length(self) -> int:
        """Of the dimension, over all ranks."""
        return sum(self.sizes)

    def scaled(self, by: int, over: int) -> AxisSharding | None:
        """Of a dimension that is by/over times as long; None where a length is not divisible."""
        if any(n * by % over for n in self.sizes):
            return None
        return AxisSharding(self.mesh, self.axis, tuple(n * by // over for n in self.sizes))

    def local_part(self, x: Tensor, dim: int) -> Tensor:
        """This rank's entries of a plain tensor."""
        return x.narrow(dim, *self.span)

    def wrap(self, local: Tensor, dim: int) -> Sharded:
        """The tensor whose entries on this rank are ``local``."""
        dim %= local.ndim
        shape = torch.Size([*local.shape[:dim], self.length, *local.shape[dim + 1 :]])
        stride = tuple(itertools.accumulate([1, *reversed(shape[1:])], operator.mul))[::-1]
        placements: list[Placement] = [Replicate()] * self.mesh.ndim
        placements[self.axis] = Shard(dim)
        meta = TensorMeta(shape, stride, local.dtype)
        spec = DTensorSpec(self.mesh, tuple(placements), tensor_meta=meta)
        out = Sharded(local, spec, requires_grad=False)  # type: ignore[no-untyped-call]
        out.sharding, out.sharded_dim = self, dim
        return out

    def distribute(self, x: Tensor, dim: int) -> Sharded:
        """A plain tensor, of which each rank keeps its own entries."""
        return self.wrap(self.local_part(x, dim).clone(), dim)

    def all_gather(self, local: Tensor) -> list[Tensor]:
        """A tensor of one shape from each rank."""
        sent = local.to(torch.uint8) if local.dtype == torch.bool else local
        return [part.to(local.dtype) for part in all_gather(sent.contiguous(), self.group)]

    def all_reduce(self, local: Tensor) -> Tensor:
        """The sum over the ranks; for a small tensor the same bits on each."""
        if local.numel() <= SMALL:
            return torch.stack(self.all_gather(local)).sum(0)
        return all_reduce(local.clone(memory_format=torch.contiguous_format), self.group)


class Sharded(DTensor):
    """A DTensor with the array API of plain tensors. ``sharding``: of its ``sharded_dim``."""

    sharding: AxisSharding
    sharded_dim: int

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            # Together with other DTensors, as an optimizer's, all are treated as such.
            if any(
                isinstance(x, DTensor) and not isinstance(x, Sharded) for x in tree_leaves(args)
            ):
                return func(*tree_map(_as_dtensor, args), **tree_map(_as_dtensor, kwargs))
            name = func.__name__
            if name in METADATA:
                if name == "__get__" and func in TRANSPOSES:
                    return RULES["swapaxes"](func, *args, -2, -1)
                return func(*args, **kwargs)
            rule = RULES.get(name)
            named = {ALIASES.get(key, key): x for key, x in kwargs.items() if x is not None}
            out = NotImplemented if rule is None else rule(func, *args, **named)
            return _by_gathering(func, *args, **kwargs) if out is NotImplemented else out

    def full(self) -> Tensor:
        """All entries, on every rank; a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            sizes, local = self.sharding.sizes, self._local_tensor
            padding = max(sizes) - local.shape[self.sharded_dim]
            if padding:
                more = list(local.shape)
                more[self.sharded_dim] = padding
                local = torch.cat([local, local.new_zeros(more)], self.sharded_dim)
            parts = zip(self.sharding.all_gather(local), sizes, strict=True)
            dim = self.sharded_dim
            return torch.cat([part.narrow(dim, 0, n) for part, n in parts], dim)


def sharded(x: DTensor) -> Tensor:
    """A DTensor as a :class:`Sharded`; a plain tensor where it is replicated.

    Raises:
        ParameterError: it is sharded along several axes of its mesh, or in another order.
    """
    if isinstance(x, Sharded):
        return x
    with torch.no_grad():
        axes = [i for i, p in enumerate(x.placements) if not isinstance(p, Replicate)]
        if not axes:
            return x._local_tensor.detach()
        placement = x.placements[axes[0]]
        if len(axes) > 1 or type(placement) is not Shard:
            raise ParameterError(
                "a parameter is sharded in a way that is not supported",
                got=str(x.placements),
                do="shard it along one axis of the mesh, as fully_shard does",
            )
        dim = placement.dim % x.ndim
        count = x.device_mesh.size(axes[0])
        chunk = -(-x.shape[dim] // count)
        ends = [min(x.shape[dim], i * chunk) for i in range(count + 1)]
        sizes = tuple(b - a for a, b in itertools.pairwise(ends))
        return AxisSharding(x.device_mesh, axes[0], sizes).wrap(x._local_tensor.detach(), dim)


def like(x: Tensor, model: Tensor, lead: int = 0) -> Tensor:
    """``x`` sharded as ``model`` is; ``lead``: leading axes that ``model`` does not have."""
    if not isinstance(model, Sharded):
        return x.full() if isinstance(x, Sharded) else x
    sharding, dim = model.sharding, model.sharded_dim + lead
    if isinstance(x, Sharded) and x.sharding == sharding and x.sharded_dim == dim:
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return sharding.wrap(sharding.local_part(gathered(x), dim).contiguous(), dim)


def _as_dtensor(x: Any) -> Any:
    if not isinstance(x, Sharded):
        return x
    return DTensor(x._local_tensor, x._spec, requires_grad=False)  # type: ignore[no-untyped-call]


def gathered(x: Any) -> Any:
    """A plain tensor on every rank; what is not sharded as it is."""
    return x.full() if isinstance(x, Sharded) else x


def _by_gathering(func: Any, *args: Any, **kwargs: Any) -> Any:
    whole = tree_map(gathered, args)
    out = func(*whole, **tree_map(gathered, kwargs))
    target = args[0] if args else None
    if isinstance(target, Sharded) and _writes(func.__name__):
        target._local_tensor.copy_(target.sharding.local_part(whole[0], target.sharded_dim))
        return target if out is whole[0] else out
    return out


def _writes(name: str) -> bool:
    """Whether the operation of this name writes into its first argument."""
    inner = name.strip("_")
    in_place = inner.startswith("i") and inner[1:] in (*_BINARY.split(), *_COMPARED.split())
    return inner == "setitem" or (in_place if name.endswith("__") else name.endswith("_"))


def elementwise(func: Any, *args: Any, **kwargs: Any) -> Any:
    """On the local entries; of plain tensors, on this rank's part."""
    if _writes(func.__name__) and not isinstance(args[0], Sharded):
        return NotImplemented
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    first = next(x for x in tensors if isinstance(x, Sharded))
    sharding, back = first.sharding, first.sharded_dim - first.ndim  # counted from the last axis
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))  # type: ignore[no-untyped-call]
    if shape[back] != sharding.length:
        return NotImplemented

    def local(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        has_dim = x.ndim >= -back and x.shape[back] == sharding.length
        return local_like(first, x, back) if has_dim else gathered(x)

    out = func(*tree_map(local, args), **tree_map(local, kwargs))
    if isinstance(args[0], Sharded) and out is args[0]._local_tensor:
        return args[0]
    return sharding.wrap(out, back)


def local_like(x: Sharded, other: Any, dim: int) -> Any:
    """This rank's entries of ``other``, sharded along ``dim`` as ``x`` is."""
    alike = isinstance(other, Sharded) and other.sharding == x.sharding
    if alike and other.sharded_dim == dim % other.ndim:
        return other._local_tensor
    return x.sharding.local_part(gathered(other), dim)


ALIASES = {"axis": "dim", "keepdims": "keepdim"}  # NumPy's words, which torch understands
TRANSPOSES = {torch.Tensor.T.__get__, torch.Tensor.mT.__get__}  # type: ignore[attr-defined]
_METADATA = (
    "__get__ __set__ __delete__ __dlpack_device__ __hash__ __repr__ __str__ __format__ __len__ dim "
    "ndimension size numel nelement stride element_size is_floating_point is_complex get_device "
    "storage_offset __reduce_ex__ requires_grad_ register_hook untyped_storage data_ptr"
)
METADATA = frozenset(_METADATA.split())
_BINARY = "add sub mul div truediv floordiv mod pow"
_COMPARED = "eq ne lt le gt ge and or xor"
_ENTRYWISE = (
    "abs absolute add addcdiv addcmul bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp "
    "clip clone contiguous copysign detach div divide double eq erf exp expm1 float floor "
    "floor_divide fmax fmin fmod full_like ge greater greater_equal gt half heaviside hypot "
    "isfinite isinf isnan le lerp less less_equal log log10 log1p log2 logical_and logical_not "
    "logical_or logical_xor lt maximum minimum mul multiply nan_to_num ne neg negative not_equal "
    "ones_like positive pow reciprocal relu remainder round rsqrt sigmoid sign signbit sqrt "
    "square sub subtract tanh to trunc true_divide type where zeros_like"
)
ENTRYWISE: Sequence[str] = (
    *_ENTRYWISE.split(),
    *(f"{name}_" for name in (*_ENTRYWISE.split(), "copy", "fill", "zero")),
    *(f"__{side}{name}__" for name in _BINARY.split() for side in ("", "r", "i")),
    *(f"__{side}{name}__" for name in _COMPARED.split() for side in ("", "i")),
    *("__neg__", "__pos__", "__abs__", "__invert__", "rsub"),
)
RULES: dict[str, Rule] = dict.fromkeys(ENTRYWISE, elementwise)
