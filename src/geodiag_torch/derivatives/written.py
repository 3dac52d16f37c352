"""Losses that write to measured parameters, as ``nn.Embedding(max_norm=)`` does."""

from __future__ import annotations

from collections.abc import Callable

import torch

from geodiag.errors import LossError
from geodiag.monitoring.unmeasured import listed
from geodiag_torch.derivatives.forward import Leaves
from geodiag_torch.derivatives.objective import Objective
from geodiag_torch.state.rng import outside_inference
from geodiag_torch.state.writes import address


def settle(objective: Objective, leaves: Leaves, run: Callable[[], object]) -> None:
    """Give memory of their own to leaves that passes write to, as passes leave them.

    ``run``: makes a pass with the leaves.

    Raises:
        LossError: the next pass leaves them otherwise.
    """
    updated = objective.guard.updated
    if not updated or not leaves:
        return
    written = [
        name
        for name, p in objective.live().items()
        if (address(p) in updated or id(p) in updated) and address(leaves[name]) == address(p)
    ]
    if not written:
        return
    leaves.update(
        outside_inference(lambda: {n: leaves[n].detach().clone().requires_grad_() for n in written})
    )
    run()
    left = {name: leaves[name].detach().clone() for name in written}
    run()
    for name, x in left.items():
        step = float((leaves[name].detach() - x).norm())
        if step > 8 * torch.finfo(x.dtype).eps * float(x.norm()):
            raise LossError(
                "each pass changes measured parameters",
                got=listed(written),
                do="change them after the optimizer's step, or leave them out with where=",
            )
    objective.guard.note(
        f"the loss writes to {listed(written)}: measured as it leaves them, and what it writes is "
        "constant in products"
    )
