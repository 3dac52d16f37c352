"""DTensors as sharded tensors of this package, for what meets them without a problem around it.

torch's part for them takes a while to import: who has none does not wait for it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from torch import Tensor


def ours(x: Tensor) -> Tensor:
    """A DTensor as a sharded tensor, with the array API of plain ones; others as they are."""
    return _sharding().ours(x) if _is_dtensor(x) else x


def spread_as(x: Tensor, p: Tensor) -> Tensor:
    """``x``, of the shape of ``p``, spread over the ranks as ``p`` is."""
    return _sharding().like(x, ours(p)) if _is_dtensor(p) else x


def _is_dtensor(x: Tensor) -> bool:
    used = sys.modules.get("torch.distributed.tensor")
    return used is not None and isinstance(x, used.DTensor)


def _sharding() -> Any:
    return import_module("geodiag_torch.sharding.fsdp")
