"""How much memory tensors take at their peak, by watching every operation of torch."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Inside, the bytes of all storages that operations make, each until it is freed.

    What an operation allocates and frees within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.top = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self._count(x.untyped_storage())
        self.top = max(self.top, self.now)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if size and address not in self._live:
            self._live[address] = size
            self.now += size
            weakref.finalize(storage, self._freed, address)

    def _freed(self, address: int) -> None:
        self.now -= self._live.pop(address, 0)


def peak(run: Callable[[], Any]) -> int:
    """The bytes that ``run()`` takes at its peak."""
    with Peak() as tracked:
        run()
    return tracked.top
