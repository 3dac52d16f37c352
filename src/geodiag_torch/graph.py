"""First and second derivatives by autograd, and the graph that is kept between products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from geodiag.errors import EngineError
from geodiag_torch.forward import Leaves


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
            do='pass engine="finite-difference"' if create_graph else None,
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


def check_graph(gradient: Mapping[str, Tensor]) -> None:
    """Refuse a gradient whose second derivative autograd would silently leave out.

    ``autograd.grad`` visits only the nodes on a path to its inputs. The node with which a
    once-differentiable function wants to raise lies on no such path, so its curvature would count
    as zero. A constant gradient that is not zero may come from such a function too.

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
    while waiting:
        node = waiting.pop()
        if node.name().endswith("::Error"):
            raise EngineError(
                "an operation of the model cannot be differentiated twice",
                got="a function marked once_differentiable",
                do='pass engine="finite-difference"',
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


class KeptGraph:
    """The gradient with its graph: each product costs one more backward pass."""

    def __init__(
        self, forward: Callable[[], Tensor], leaves: Leaves, count_bytes: bool = False
    ) -> None:
        self._leaves = leaves
        self._sizes: dict[int, int] = {}
        hooks: Any = (
            torch.autograd.graph.saved_tensors_hooks(self._count, lambda x: x)
            if count_bytes
            else torch.enable_grad()
        )
        with hooks:
            loss = forward()
            self.with_graph = derivative(loss, leaves, create_graph=True)
        self.loss = loss.detach()

    @property
    def bytes(self) -> int:
        """What the graph holds, where it was counted."""
        return sum(self._sizes.values())

    def gradient(self) -> dict[str, Tensor]:
        return {name: g.detach() for name, g in self.with_graph.items()}

    def hvp(self, direction: Leaves) -> dict[str, Tensor]:
        return second_derivative(self.with_graph, self._leaves, direction, keep=True)

    def _count(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        self._sizes[storage.data_ptr()] = storage.nbytes()
        return x


def first_line(e: BaseException) -> str:
    """The first line of an exception's text."""
    lines = str(e).strip().splitlines()
    return lines[0] if lines else type(e).__name__
