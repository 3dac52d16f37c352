"""First and second derivatives of a loss by autograd."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from geodiag.errors import EngineError, first_line
from geodiag_torch.derivatives.forward import Leaves
from geodiag_torch.derivatives.graph_inspection import check_reached

DIFFERENCES = 'pass engine="finite-difference"'


def derivative(loss: Tensor, leaves: Leaves, create_graph: bool = False) -> dict[str, Tensor]:
    """∂loss/∂leaves; zeros for leaves that the loss does not use.

    Raises:
        EngineError: the module's backward pass cannot be used this way.
    """
    what = "the loss could not be differentiated" + (" twice" if create_graph else "")
    do = "checkpoint with use_reentrant=False, if it is checkpointing that fails"
    return _grad(
        [loss], leaves, what, DIFFERENCES if create_graph else do, create_graph=create_graph
    )


def reentrant_derivative(
    loss: Tensor, leaves: Leaves, parameters: Iterable[Tensor], measured: Leaves
) -> dict[str, Tensor]:
    """∂loss/∂leaves through reentrant checkpoints, which ``torch.autograd.grad`` refuses.

    ``loss.backward()`` alone reaches through them. It accumulates into the ``.grad`` of every
    tensor on its way: the leaves are fresh, and the others' ``.grad`` is restored.

    To be called while the leaves replace parameters. ``parameters``: what else the backward pass
    may accumulate into. ``measured``: the parameters that the leaves replace.

    Raises:
        EngineError: the backward pass would run the user's hooks, or fails.
        ParameterError: it reaches parameters that the leaves replace.
    """
    ids = set(map(id, leaves.values()))
    others = [p for p in parameters if id(p) not in ids and p.requires_grad]
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in others):
        raise EngineError(
            "a backward pass through reentrant checkpoints would run the hooks of parameters",
            got="register_post_accumulate_grad_hook on a parameter that is not measured",
            do="checkpoint with use_reentrant=False, or measure all parameters",
        )
    others += measured.values()
    before = [p.grad for p in others]
    try:
        for x in (*others, *leaves.values()):
            x.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        check_reached(name for name, p in measured.items() if p.grad is not None)
        found = {name: leaf.grad for name, leaf in leaves.items()}
    except RuntimeError as e:
        raise EngineError("the loss could not be differentiated", got=first_line(e)) from e
    finally:
        for p, grad in zip(others, before, strict=True):
            p.grad = grad
        for leaf in leaves.values():
            leaf.grad = None
    return {n: torch.zeros_like(leaves[n]) if g is None else _dense(g) for n, g in found.items()}


def second_derivative(
    gradient: Mapping[str, Tensor],
    leaves: Leaves,
    direction: Leaves,
    keep: bool,
    batched: bool = False,
) -> dict[str, Tensor]:
    """∂⟨gradient, direction⟩/∂leaves, for a gradient that carries its graph.

    ``keep``: keep the graph for further products. ``batched``: for directions stacked on a leading
    axis, all in one vectorised backward pass.

    Raises:
        EngineError: some operation has no double backward, or none for a stack.
    """
    live = [name for name, g in gradient.items() if g.requires_grad]
    if not live:
        return {name: torch.zeros_like(d) for name, d in direction.items()}
    found = _grad(
        [gradient[name] for name in live],
        leaves,
        "the gradient could not be differentiated again",
        DIFFERENCES,
        grad_outputs=[direction[name] for name in live],
        retain_graph=keep,
        is_grads_batched=batched,
    )
    # The zeros of a leaf that no gradient depends on come in its own shape, also for a stack.
    return {name: x.expand_as(direction[name]) for name, x in found.items()}


def second_derivatives(
    gradient: Mapping[str, Tensor], leaves: Leaves, direction: Leaves, keep: bool
) -> dict[str, Tensor]:
    """:func:`second_derivative` for stacked directions, one after the other."""
    stacks = direction.values()
    rows = [dict(zip(direction, row, strict=True)) for row in zip(*stacks, strict=True)]
    found = [second_derivative(gradient, leaves, row, keep or row is not rows[-1]) for row in rows]
    return {name: torch.stack([x[name] for x in found]) for name in direction}


def _grad(
    outputs: Sequence[Tensor], leaves: Leaves, what: str, do: str, **options: Any
) -> dict[str, Tensor]:
    """``torch.autograd.grad``; ``what``, ``do``: of the error where it fails."""
    inputs = list(leaves.values())
    try:
        found = torch.autograd.grad(outputs, inputs, materialize_grads=True, **options)
    except RuntimeError as e:
        raise EngineError(what, got=first_line(e), do=do) from e
    return dict(zip(leaves, map(_dense, found), strict=True))


def _dense(x: Tensor) -> Tensor:
    """A derivative as the measurement holds it; that of ``nn.Embedding(sparse=True)`` is sparse."""
    return x if x.layout is torch.strided else x.to_dense()
