"""The same loss in single precision, for a look at products that 16 bits would not resolve."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from geodiag_torch.derivatives.forward import Loss, move, wide

if TYPE_CHECKING:
    from geodiag_torch.problem import TorchProblem


def in_single(problem: TorchProblem) -> TorchProblem:
    """The problem of a copy of the model, with everything of fewer than 32 bits in 32 bits.

    Torch's and Python's own errors come from a model that cannot be copied.
    """

    def value(model: nn.Module, batch: Any) -> Tensor:
        # A loss that closes over its model runs that, with the buffers lent as ever.
        wide_batch = move(batch, problem.device, widened=True)
        return problem.lend({}, lambda: loss.of(wide_batch))

    loss: Loss = copy.deepcopy(problem.loss, _widened(problem.loss))
    return type(problem)(
        loss.model,
        loss_fn=value,
        data=problem.data,
        where=lambda name, p: name in problem.space.shapes,
        weight=problem.batches.weigh,
        engine="recompute",
        process_group=problem.ranks.group,
    )


def _widened(module: nn.Module) -> dict[int, Any]:
    """What a deep copy is to have in the place of parameters and buffers, by their identity."""
    found: dict[int, Any] = {}
    for p in module.parameters():
        found[id(p)] = nn.Parameter(wide(p.detach()).clone(), p.requires_grad)
    for b in module.buffers():
        found[id(b)] = wide(b.detach()).clone()
    return found
