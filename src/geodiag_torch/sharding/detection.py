"""Whether a model or a tensor is sharded, for those who do not know.

The rest of this package needs ``torch.distributed.tensor`` and ``torch.distributed.fsdp``, whose
import takes half a second, and which some builds of torch lack. They are imported already wherever
something is sharded; only there :mod:`geodiag_torch.sharding.fsdp` is imported, on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from geodiag.errors import ParameterError

PLAIN = (Tensor, nn.Parameter)


def sharding_of(model: nn.Module) -> Any:
    """The module :mod:`geodiag_torch.sharding.fsdp` if ``model`` is sharded, else None.

    Raises:
        ParameterError: sharded in another way than by fully_shard.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")

    def holds(kind: str) -> bool:
        known = getattr(fsdp, kind, None)
        return known is not None and any(isinstance(m, known) for m in model.modules())

    if holds("FSDPModule"):
        return _fsdp()
    if holds("FullyShardedDataParallel") or any(map(_is_dtensor, model.parameters())):
        raise ParameterError(
            "the parameters are sharded in another way than by torch.distributed.fsdp.fully_shard",
            got=type(model).__name__,
            do="shard the model with fully_shard, or measure it unsharded",
        )
    return None


def as_sharded(x: Tensor) -> Tensor:
    """A DTensor with the array API of plain tensors; others as they are."""
    return _fsdp().sharded(x) if _is_dtensor(x) else x


def local(x: Tensor) -> Tensor:
    """This rank's entries of a DTensor, in the same memory; others as they are."""
    with torch.no_grad():  # with it, DTensor would give a view for autograd
        return x.to_local() if _is_dtensor(x) else x  # type: ignore[attr-defined]


def sharded_like(x: Tensor, p: Tensor) -> Tensor:
    """``x``, of the shape of ``p``, sharded as ``p`` is."""
    return _fsdp().like(x, as_sharded(p)) if _is_dtensor(p) else x


def _is_dtensor(x: Tensor) -> bool:
    if type(x) in PLAIN:
        return False
    used = sys.modules.get("torch.distributed.tensor")
    return used is not None and isinstance(x, used.DTensor)


def _fsdp() -> Any:
    return import_module("geodiag_torch.sharding.fsdp")
