"""First and second derivatives by autograd, and the graph that is kept between products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from geodiag.errors import EngineError
from geodiag_torch.forward import Leaves

# Nodes in the graph of a gradient that differentiate to something wrong, and whose they are.
WRONG = {
    "::Error": "a function marked once_differentiable",
    "CompiledFunction": "a function compiled by torch.compile, which drops the second derivative",
    "WeightNormInterface": "weight_norm, whose double backward is wrong in torch",
}


def derivative(loss: Tensor, leaves: Leaves, create_graph: bool = False) -> dict[str, Tensor]:
    """∂loss/∂leaves; zeros for leaves that the loss does not use.

    Raises:
        EngineError: the module's backward pass cannot be used this way.
    """
    try:
        found = torch.autograd.grad(
            loss,
            list(leaves.values()),
            create_graph=create_graph,
            materialize_grads=True,
        )
    except RuntimeError as e:
        raise EngineError(
            "the loss could not be differentiated" + (" twice" if create_graph else ""),
            got=first_line(e),
            do='pass engine="finite-difference"'
            if create_graph
            else "checkpoint with use_reentrant=False, if it is checkpointing that fails",
        ) from e
    return dict(zip(leaves, found, strict=True))


def second_derivative(
    gradient: Mapping[str, Tensor], leaves: Leaves, direction: Leaves, keep: bool
) -> dict[str, Tensor]:
    """∂⟨gradient, direction⟩/∂leaves, for a gradient that carries its graph.

    Raises:
        EngineError: some operation has no double backward.
    """
    live = [name for name, g in gradient.items() if g.requires_grad]
    if not live:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    try:
        found = torch.autograd.grad(
            [gradient[name] for name in live],
            list(leaves.values()),
            grad_outputs=[direction[name] for name in live],
            retain_graph=keep,
            materialize_grads=True,
        )
    except RuntimeError as e:
        raise EngineError(
            "the gradient could not be differentiated again",
            got=first_line(e),
            do='pass engine="finite-difference"',
        ) from e
    return dict(zip(leaves, found, strict=True))


def check_graph(gradient: Mapping[str, Tensor]) -> bool:
    """Refuse a gradient whose second derivative is known to be dropped or wrong.

    ``autograd.grad`` visits only the nodes on a path to its inputs. The node with which a
    once-differentiable function wants to raise lies on no such path, so its curvature would count
    as zero. A constant gradient that is not zero may come from such a function too.

    Returns:
        Whether the graph holds custom functions (``torch.autograd.Function``), whose backward can
        hide dependences: only a comparison with finite differences can tell.

    Raises:
        EngineError: naming the parameter or the operation.
    """
    for name, g in gradient.items():
        if not g.requires_grad and bool(g.any()):
            raise EngineError(
                f"the gradient with respect to {name!r} carries no graph",
                got="a constant, or a backward pass that cannot be differentiated",
                do='pass engine="finite-difference"',
            )
    waiting = [g.grad_fn for g in gradient.values() if g.grad_fn is not None]
    seen = set(waiting)
    custom = False
    while waiting:
        node = waiting.pop()
        custom = custom or isinstance(node, BackwardCFunction)
        culprit = next((who for mark, who in WRONG.items() if mark in node.name()), None)
        if culprit is not None:
            raise EngineError(
                "an operation of the model cannot be differentiated twice",
                got=culprit,
                do='pass engine="finite-difference"',
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return custom


class KeptGraph:
    """The gradient with its graph: each product costs one more backward pass."""

    def __init__(
        self, forward: Callable[[], Tensor], leaves: Leaves, count_bytes: bool = False
    ) -> None:
        self._leaves = leaves
        sizes: dict[int, int] = {}
        with _counting(sizes) if count_bytes else nullcontext():
            loss = forward()
            self.gradient = derivative(loss, leaves, create_graph=True)
        self.loss = loss.detach()
        self.bytes = sum(sizes.values())  # what the graph holds, where it was counted

    def hvp(self, direction: Leaves) -> dict[str, Tensor]:
        return second_derivative(self.gradient, self._leaves, direction, keep=True)


def _counting(sizes: dict[int, int]) -> AbstractContextManager[Any]:
    """Note the size of every storage that autograd saves."""

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return x.detach()  # x itself may be an output, which would keep its own graph alive

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)


def first_line(e: BaseException) -> str:
    """The first line of an exception's text."""
    lines = str(e).strip().splitlines()
    return lines[0] if lines else type(e).__name__
