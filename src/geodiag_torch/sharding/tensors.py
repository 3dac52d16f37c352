"""Tensors whose entries lie on several ranks, with the array API of one that lies on each.

A :class:`Sharded` is a DTensor that computes on its local entries where it can: entry by entry, in
sums over axes, in products of matrices. Answers that are small are plain tensors, equal on every
rank. Whatever has no rule here gathers the tensor on every rank, and is right too, only larger; so
a norm may do to it what the array API offers. Every rank does the same operations in the same
order.

DTensor's own operators would refuse to mix with plain tensors and with shards of uneven sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from geodiag.errors import ParameterError
from geodiag_torch.ranks import TOGETHER, collective

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Layout:
    """How one axis is spread over one axis of a mesh; along others the tensor is replicated."""

    mesh: DeviceMesh
    axis: int  # of the mesh
    sizes: tuple[int, ...]  # how many entries of the tensor's axis each rank has

    @property
    def group(self) -> dist.ProcessGroup:
        return self.mesh.get_group(self.axis)

    @property
    def span(self) -> tuple[int, int]:
        """Where this rank's entries begin, and how many they are."""
        rank = self.mesh.get_local_rank(self.axis)
        return sum(self.sizes[:rank]), self.sizes[rank]

    @property
    def whole(self) -> int:
        return sum(self.sizes)

    def scaled(self, factor: int) -> Layout:
        return Layout(self.mesh, self.axis, tuple(n * factor for n in self.sizes))

    def divided(self, factor: int) -> Layout | None:
        if any(n % factor for n in self.sizes):
            return None
        return Layout(self.mesh, self.axis, tuple(n // factor for n in self.sizes))

    def part(self, x: Tensor, dim: int) -> Tensor:
        """This rank's entries of a plain tensor."""
        return x.narrow(dim, *self.span)

    def wrap(self, local: Tensor, dim: int) -> Sharded:
        """The tensor whose entries on this rank are ``local``."""
        dim %= local.ndim
        shape = torch.Size([*local.shape[:dim], self.whole, *local.shape[dim + 1 :]])
        stride = tuple(itertools.accumulate([1, *reversed(shape[1:])], lambda a, b: a * b))[::-1]
        placements: list[Placement] = [Replicate()] * self.mesh.ndim
        placements[self.axis] = Shard(dim)
        meta = TensorMeta(shape, stride, local.dtype)
        spec = DTensorSpec(self.mesh, tuple(placements), tensor_meta=meta)
        out = Sharded(local, spec, requires_grad=False)  # type: ignore[no-untyped-call]
        out.spread, out.along = self, dim
        return out

    def gathered(self, local: Tensor) -> list[Tensor]:
        """A tensor of one shape from each rank."""
        mine = local.contiguous()
        sent = mine.to(torch.uint8) if mine.dtype == torch.bool else mine
        parts = [torch.empty_like(sent) for _ in self.sizes]
        collective(lambda: dist.all_gather(parts, sent, group=self.group))
        return [part.to(local.dtype) for part in parts]

    def added(self, local: Tensor) -> Tensor:
        """The sum over the ranks; of a small tensor bit for bit the same on each."""
        if local.numel() <= TOGETHER:
            return torch.stack(self.gathered(local)).sum(0)
        total = local.clone(memory_format=torch.contiguous_format)
        collective(lambda: dist.all_reduce(total, group=self.group))
        return total


class Sharded(DTensor):
    """See the module. ``full_tensor()``, ``to_local()`` and ``placements`` are those of DTensor."""

    spread: Layout
    along: int  # the axis that is spread

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            # With DTensors that are not ours, as an optimizer's, all are such.
            if any(isinstance(x, DTensor) and not isinstance(x, Sharded) for x in flat(args)):
                return func(*mapped(_bare, args), **mapped(_bare, kwargs))
            name = func.__name__
            if name in METADATA:
                if name == "__get__" and func in TRANSPOSES:
                    return RULES["swapaxes"](func, (*args, -2, -1), {})
                return func(*args, **kwargs)
            rule = RULES.get(name)
            out = NotImplemented if rule is None else rule(func, args, kwargs)
            return _by_gathering(func, args, kwargs) if out is NotImplemented else out

    def full(self) -> Tensor:
        """All entries, on every rank; a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            sizes, local = self.spread.sizes, self._local_tensor
            padding = max(sizes) - local.shape[self.along]
            if padding:
                more = list(local.shape)
                more[self.along] = padding
                local = torch.cat([local, local.new_zeros(more)], self.along)
            parts = self.spread.gathered(local)
            named = zip(parts, sizes, strict=True)
            return torch.cat([part.narrow(self.along, 0, n) for part, n in named], self.along)


def sharded(x: DTensor) -> Tensor:
    """A DTensor as one of ours; a plain tensor where it is replicated.

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
        return Layout(x.device_mesh, axes[0], sizes).wrap(x._local_tensor.detach(), dim)


def like(x: Tensor, model: Tensor, lead: int = 0) -> Tensor:
    """``x`` spread as ``model`` is; ``lead``: axes in front that ``model`` has not."""
    if not isinstance(model, Sharded):
        return x.full() if isinstance(x, Sharded) else x
    layout, dim = model.spread, model.along + lead
    with torch._C.DisableTorchFunctionSubclass():
        if isinstance(x, Sharded):
            if x.spread == layout and x.along == dim:
                return x
            x = x.full()
        return layout.wrap(layout.part(x, dim).contiguous(), dim)


def flat(tree: Any) -> list[Any]:
    """The leaves of nested tuples, lists and dicts."""
    if isinstance(tree, (tuple, list)):
        return [leaf for branch in tree for leaf in flat(branch)]
    return flat(list(tree.values())) if isinstance(tree, dict) else [tree]


def mapped(f: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree with ``f`` of its leaves."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(f, branch) for branch in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(mapped(f, branch) for branch in tree)
    if isinstance(tree, dict):
        return {name: mapped(f, branch) for name, branch in tree.items()}
    return f(tree)


def _bare(x: Any) -> Any:
    if not isinstance(x, Sharded):
        return x
    return DTensor(x._local_tensor, x._spec, requires_grad=False)  # type: ignore[no-untyped-call]


def _whole(x: Any) -> Any:
    return x.full() if isinstance(x, Sharded) else x


def _by_gathering(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    whole = mapped(_whole, args)
    out = func(*whole, **mapped(_whole, kwargs))
    target = args[0] if args else None
    if isinstance(target, Sharded) and _writes(func.__name__):
        target._local_tensor.copy_(target.spread.part(whole[0], target.along))
        return target if out is whole[0] else out
    return out


def _writes(name: str) -> bool:
    """Whether this operation writes into its first argument."""
    inner = name.strip("_")
    in_place = inner.startswith("i") and inner[1:] in (*_BINARY.split(), *_COMPARED.split())
    return inner == "setitem" or (in_place if name.endswith("__") else name.endswith("_"))


def elementwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Each rank its own entries; plain tensors give their part."""
    if _writes(func.__name__) and not isinstance(args[0], Sharded):
        return NotImplemented
    tensors = [x for x in flat((args, kwargs)) if isinstance(x, Tensor)]
    first = next(x for x in tensors if isinstance(x, Sharded))
    layout, back = first.spread, first.along - first.ndim  # counted from the last axis
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))  # type: ignore[no-untyped-call]
    if shape[back] != layout.whole:
        return NotImplemented

    def local(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if isinstance(x, Sharded):
            if x.spread == layout and x.along - x.ndim == back:
                return x._local_tensor
            x = x.full()
        spread = x.ndim >= -back and x.shape[back] == layout.whole
        return layout.part(x, back) if spread else x

    out = func(*mapped(local, args), **mapped(local, kwargs))
    if isinstance(args[0], Sharded) and out is args[0]._local_tensor:
        return args[0]
    return layout.wrap(out, back)


def same(x: Sharded, other: Any, dim: int) -> Any:
    """The local entries of ``other`` along ``dim``, where it can be spread as ``x`` is."""
    if isinstance(other, Sharded):
        if other.spread == x.spread and other.along == dim % other.ndim:
            return other._local_tensor
        other = other.full()
    return x.spread.part(other, dim)


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
