"""The graph of a gradient, kept so that each Hessian-vector product is one more backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


class KeptGraph:
    """The gradient of each batch with its graph.

    Args:
        dtype: of the measurement.
        limit: bytes that the graphs may hold; None: no limit.
    """

    def __init__(self, dtype: torch.dtype, limit: float | None) -> None:
        self._dtype, self._limit = dtype, limit
        self._parts: list[tuple[float, dict[str, Tensor]]] = []
        self._sizes: dict[int, int] = {}  # of the storages counted, by their addresses
        self.bytes = 0  # what the gradients hold, and what was saved inside of :meth:`counting`
        self.full = False  # whether that was more than the limit, so that nothing is kept
        self.divisor = 1.0  # of the weighted sum over the batches; to be set

    def add(self, weight: float, gradient: dict[str, Tensor]) -> None:
        """Keep one batch's gradient, which carries its graph."""
        self._parts.append((weight, gradient))
        for g in gradient.values():
            _count(g, self._sizes)
        self.bytes = sum(self._sizes.values())
        if self._limit is not None and self.bytes > self._limit:
            self.full = True
            self._parts.clear()

    def counting(self) -> AbstractContextManager[Any]:
        """Inside, the bytes that autograd saves are counted, if there is a limit to them."""
        if self._limit is None:
            return nullcontext()
        sizes = self._sizes  # the hook lives in the graph: self would be a reference cycle

        def pack(x: Tensor) -> Tensor:
            _count(x, sizes)
            return x.detach()  # x itself may be an output, which would keep its own graph alive

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)

    def sum(self, second: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
        """``second`` of each batch's gradient, summed and normalised as the loss is."""
        total: dict[str, Tensor] = {}
        for weight, gradient in self._parts:
            add_weighted(total, second(gradient), weight / self.divisor, self._dtype)
        return total


def _count(x: Tensor, sizes: dict[int, int]) -> None:
    if x.layout is not torch.strided:  # values, and at most one index of 8 bytes per axis
        values = x._values() if x.layout is torch.sparse_coo else x.values()
        sizes[values.data_ptr()] = values.nbytes + 8 * x.ndim * len(values)
        return
    storage = x.untyped_storage()
    sizes[storage.data_ptr()] = storage.nbytes()


def add_weighted(
    total: dict[str, Tensor], blocks: Mapping[str, Tensor], weight: float, dtype: torch.dtype
) -> None:
    """Add weight·blocks to a total, in ``dtype``; without a copy where that changes nothing."""
    for name, x in blocks.items():
        x = x if x.dtype is dtype else x.to(dtype)
        x = x if weight == 1.0 else x * weight
        total[name] = total[name] + x if name in total else x
