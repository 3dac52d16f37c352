"""What the passes of a module sharded by ``fully_shard`` change, saved and restored.

Gradients, accumulated ones too, hooks on parameters and the settings of gradient synchronisation
are saved before the passes, and restored with the parameters' entries afterwards, also when a pass
raises. Entries are written past autograd's version counters, for nothing has changed in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

# Of FSDP's parameter groups, while a pass runs: gradients are reduced, parameters released.
SETTINGS = {
    "reduce_grads": True,
    "all_reduce_grads": True,
    "reshard_after_backward": True,
    "reduce_scatter_unused_params": True,
    "_partial_reduce_output": None,
}


def reshard(model: nn.Module) -> None:
    """Release gathered parameters, so that the module holds its sharded ones."""
    for m in _fsdp_modules(model):
        m.reshard()


def groups(model: nn.Module) -> list[Any]:
    """FSDP's parameter groups."""
    found: dict[int, Any] = {}
    for m in _fsdp_modules(model):
        state = m._get_fsdp_state()
        several = getattr(state, "_fsdp_param_groups", None)
        for group in [state._fsdp_param_group] if several is None else several:
            if group is not None:
                found[id(group)] = group
    return list(found.values())


def precision(model: nn.Module) -> float:
    """The machine epsilon of the coarsest dtype that FSDP computes or communicates in, else 0."""
    policies = [group.mp_policy for group in groups(model)]
    dtypes = {d for policy in policies for d in (policy.param_dtype, policy.reduce_dtype) if d}
    return max((torch.finfo(d).eps for d in dtypes), default=0.0)


def divisors(model: nn.Module, size: int) -> dict[int, float]:
    """What FSDP divides the sum of each gradient by, by the ids of the sharded parameters."""
    return {
        id(param.sharded_param): group.gradient_divide_factor or float(size)
        for group in groups(model)
        for param in group.fsdp_params
    }


@contextmanager
def replaced(model: nn.Module, new: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside, parameters have other entries and no gradients; afterwards all is as it was.

    ``new``: parameters, and the entries that each holds inside, on this rank.
    """
    params: list[Any] = list(model.parameters())
    grads = [p.grad for p in params]
    hooks = [p._post_accumulate_grad_hooks for p in params]
    before = [(p, local(p).clone()) for p, _ in new]
    with ExitStack() as stack:
        for owner, name, value in _settings(model):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        try:
            for p in params:
                p.grad = None
                p._post_accumulate_grad_hooks = None
            for changed, entries in new:
                local(changed).copy_(entries)
            yield
        except BaseException:
            _recover(model)
            raise
        finally:
            reshard(model)
            for changed, entries in before:
                local(changed).copy_(entries)
            for p, grad, hook in zip(params, grads, hooks, strict=True):
                p.grad, p._post_accumulate_grad_hooks = grad, hook


def local(p: Tensor) -> Tensor:
    """The entries of a parameter on this rank, past autograd and its version counters."""
    with torch.no_grad():
        return (p._local_tensor if isinstance(p, DTensor) else p).data


def _settings(model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    for group in groups(model):
        for name, value in SETTINGS.items():
            if hasattr(group, name):
                yield group, name, value
        for param in group.fsdp_params:
            if getattr(param, "unsharded_accumulated_grad", None) is not None:
                yield param, "unsharded_accumulated_grad", None
            gathered = getattr(param, "_unsharded_param", None)
            if gathered is not None and gathered.grad is not None:
                yield gathered, "grad", None
    for m in _fsdp_modules(model):
        yield m._get_fsdp_state()._state_ctx, "is_last_backward", True


def _recover(model: nn.Module) -> None:
    """Reset FSDP's own state after an exception in the middle of a pass."""
    for m in _fsdp_modules(model):
        if m._get_fsdp_state()._is_root and hasattr(m, "reset_iter_state"):
            m.reset_iter_state()


def _fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    return [m for m in model.modules() if isinstance(m, FSDPModule)]
