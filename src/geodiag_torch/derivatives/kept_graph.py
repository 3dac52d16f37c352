"""The graph of a gradient, kept so that each Hessian-vector product is one more backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from geodiag_torch.derivatives.autograd import second_derivative, second_derivatives
from geodiag_torch.derivatives.forward import Leaves


class KeptGraph:
    """The gradient of each batch with its graph.

    Args:
        leaves: what the gradients are with respect to.
        dtype: of the measurement.
        limit: bytes that the graphs may hold; None: no limit.

    Attributes:
        bytes: what the gradients hold, and what was saved inside of :meth:`counting`.
        full: whether that was more than the limit, so that nothing is kept.
        divisor: of the weighted sum over the batches; to be set.
    """

    def __init__(self, leaves: Leaves, dtype: torch.dtype, limit: float | None) -> None:
        self._leaves, self._dtype, self._limit = leaves, dtype, limit
        self._parts: list[tuple[float, Mapping[str, Tensor]]] = []
        self._storages = _Storages()
        self.bytes = 0
        self.full = False
        self.divisor = 1.0

    def add(self, weight: float, gradient: Mapping[str, Tensor]) -> None:
        """Keep one batch's gradient, which carries its graph."""
        self._parts.append((weight, gradient))
        for g in gradient.values():
            self._storages.count(g)
        self.bytes = self._storages.bytes
        if self._limit is not None and self.bytes > self._limit:
            self.full = True
            self._parts.clear()

    def counting(self) -> AbstractContextManager[Any]:
        """Inside, the bytes that autograd saves are counted, if there is a limit to them."""
        if self._limit is None:
            return nullcontext()
        storages = self._storages  # the hook lives in the graph: self would be a reference cycle

        def pack(x: Tensor) -> Tensor:
            storages.count(x)
            return x.detach()  # x itself may be an output, which would keep its own graph alive

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)

    def hvp(self, direction: Leaves) -> dict[str, Tensor]:
        """∇²L d."""
        return self._sum(lambda g: second_derivative(g, self._leaves, direction, keep=True))

    def hvps(self, stack: Leaves, batched: bool) -> dict[str, Tensor]:
        """∇²L d for stacked directions; ``batched``: in one vectorised backward pass."""
        products = partial(second_derivative, batched=True) if batched else second_derivatives
        return self._sum(lambda g: products(g, self._leaves, stack, keep=True))

    def _sum(self, of: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for weight, gradient in self._parts:
            add_weighted(total, of(gradient), weight / self.divisor, self._dtype)
        return total


class _Storages:
    """The bytes of all storages counted, each once."""

    def __init__(self) -> None:
        self.bytes, self._sizes = 0, dict[int, int]()

    def count(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        self.bytes += storage.nbytes() - self._sizes.get(storage.data_ptr(), 0)
        self._sizes[storage.data_ptr()] = storage.nbytes()


def add_weighted(
    total: dict[str, Tensor], blocks: Mapping[str, Tensor], weight: float, dtype: torch.dtype
) -> None:
    """Add weight·blocks to a total, in ``dtype``; without a copy where that changes nothing."""
    for name, x in blocks.items():
        x = x if x.dtype is dtype else x.to(dtype)
        x = x if weight == 1.0 else x * weight
        total[name] = total[name] + x if name in total else x
