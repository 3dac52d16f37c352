"""The hook by which geodiag recognises PyTorch modules."""

from __future__ import annotations

from typing import Any

import torch

from geodiag import hookimpl
from geodiag.errors import ArgumentError
from geodiag_torch.problem import TorchProblem


@hookimpl
def geodiag_problem(
    model: Any,
    loss_fn: Any,
    criterion: Any,
    data: Any,
    params: Any,
    where: Any,
    weight: Any,
    reduction: str,
    shapes: Any,
    engine: Any,
    memory: Any,
    process_group: Any,
) -> TorchProblem | None:
    """A ``torch.nn.Module`` as a Problem; anything else is left to others."""
    if not isinstance(model, torch.nn.Module):
        return None
    if shapes is not None:
        raise ArgumentError("shapes= belongs to matrices", do="leave it out for a torch module")
    return TorchProblem(
        model,
        loss_fn=loss_fn,
        criterion=criterion,
        data=data,
        params=params,
        where=where,
        weight=weight,
        reduction=reduction,
        engine=engine,
        memory=memory,
        process_group=process_group,
    )
