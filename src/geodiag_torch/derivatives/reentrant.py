"""Gradients through reentrant checkpoints, which ``torch.autograd.grad`` refuses.

``loss.backward()`` alone reaches through them. It adds to the ``.grad`` of every tensor on its way:
ours are fresh leaves, and what the others had is put back.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from geodiag.errors import EngineError
from geodiag_torch.derivatives.forward import Leaves

NODE = "CheckpointFunctionBackward"


def accumulated(loss: Tensor, leaves: Leaves, parameters: Iterable[Tensor]) -> dict[str, Tensor]:
    """∂loss/∂leaves; zeros for leaves that the loss does not use.

    Args:
        loss: the value of a run in which ``leaves`` were lent, and still are.
        leaves: where the derivative is asked for.
        parameters: what else the backward pass may add to.

    Raises:
        EngineError: the backward pass would run hooks of the user's, or fails.
    """
    ours = {id(leaf) for leaf in leaves.values()}
    others = [p for p in parameters if id(p) not in ours and p.requires_grad]
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in others):
        raise EngineError(
            "a backward pass through reentrant checkpoints would run the hooks of parameters",
            got="register_post_accumulate_grad_hook on a parameter that is not measured",
            do="checkpoint with use_reentrant=False, or measure all parameters",
        )
    before = [p.grad for p in others]
    try:
        for x in (*others, *leaves.values()):
            x.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        found = {name: leaf.grad for name, leaf in leaves.items()}
    except RuntimeError as e:
        raise EngineError(
            "the loss could not be differentiated", got=str(e).partition("\n")[0]
        ) from e
    finally:
        for p, grad in zip(others, before, strict=True):
            p.grad = grad
        for leaf in leaves.values():
            leaf.grad = None
    return {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in found.items()}
