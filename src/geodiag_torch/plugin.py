"""The hook by which geodiag recognises PyTorch modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from geodiag import hookimpl
from geodiag.errors import ArgumentError
from geodiag_torch import checkpoints
from geodiag_torch.problem import TorchProblem


@hookimpl
def geodiag_problem(model: Any, arguments: Mapping[str, Any]) -> TorchProblem | None:
    """A ``torch.nn.Module`` as a Problem; anything else is left to others."""
    if not isinstance(model, torch.nn.Module):
        return None
    own = dict(arguments)
    if own.pop("shapes") is not None:
        raise ArgumentError("shapes= belongs to matrices", do="leave it out for a torch module")
    return TorchProblem(model, **own)


@hookimpl
def geodiag_checkpoint(problem: Any, path: Path) -> Mapping[str, torch.Tensor] | None:
    """The state_dict in a checkpoint of a torch model."""
    return checkpoints.read(path) if isinstance(problem, TorchProblem) else None
