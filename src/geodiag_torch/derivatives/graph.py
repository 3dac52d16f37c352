"""First and second derivatives by autograd, and the graph that is kept between products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from geodiag.errors import EngineError
from geodiag_torch.derivatives.forward import Leaves

# Nodes in the graph of a gradient that differentiate to something wrong, and whose they are.
WRONG = {
    "::Error": "a function marked once_differentiable",
    "CompiledFunction": "a function compiled by torch.compile, which drops the second derivative",
    "WeightNormInterface": "weight_norm, whose double backward is wrong in torch",
}
# The types of nodes that do not tell their names, which take longer to ask for.
UNTOLD = {"CppFunction", "Error"}


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
    gradient: Mapping[str, Tensor],
    leaves: Leaves,
    direction: Leaves,
    keep: bool,
    batched: bool = False,
) -> dict[str, Tensor]:
    """∂⟨gradient, direction⟩/∂leaves, for a gradient that carries its graph.

    ``batched``: for directions stacked on a leading axis, all in one backward pass.

    Raises:
        EngineError: some operation has no double backward, or none for a stack.
    """
    live = [name for name, g in gradient.items() if g.requires_grad]
    if not live:
        return {name: torch.zeros_like(d) for name, d in direction.items()}
    try:
        found = torch.autograd.grad(
            [gradient[name] for name in live],
            list(leaves.values()),
            grad_outputs=[direction[name] for name in live],
            retain_graph=keep,
            is_grads_batched=batched,
            materialize_grads=True,
        )
    except RuntimeError as e:
        raise EngineError(
            "the gradient could not be differentiated again",
            got=first_line(e),
            do='pass engine="finite-difference"',
        ) from e
    return dict(zip(leaves, found, strict=True))


def second_derivatives(
    gradient: Mapping[str, Tensor], leaves: Leaves, stack: Leaves, keep: bool
) -> dict[str, Tensor]:
    """:func:`second_derivative` for stacked directions, one after the other."""
    rows = [dict(zip(stack, row, strict=True)) for row in zip(*stack.values(), strict=True)]
    found = [second_derivative(gradient, leaves, row, keep or row is not rows[-1]) for row in rows]
    return {name: torch.stack([x[name] for x in found]) for name in stack}


@dataclass(frozen=True)
class Structure:
    """What the graph of a gradient is made of."""

    operations: int  # a hash of its nodes, in the order of a walk
    custom: bool  # whether there are custom functions (torch.autograd.Function) among them


def check_graph(gradient: Mapping[str, Tensor]) -> Structure:
    """Refuse a gradient whose second derivative is known to be dropped or wrong.

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
    walk: list[tuple[type, str]] = []
    while waiting:
        node = waiting.pop()
        kind = type(node)
        name = node.name() if kind.__name__ in UNTOLD else kind.__name__
        walk.append((kind, name))
        culprit = _culprit(name)
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
    custom = any(issubclass(kind, BackwardCFunction) for kind, _ in walk)
    return Structure(hash(tuple(walk)), custom)


@lru_cache(maxsize=4096)
def _culprit(name: str) -> str | None:
    """Whose the node is, if it differentiates to something wrong."""
    return next((who for mark, who in WRONG.items() if mark in name), None)


class KeptGraph:
    """The gradient with its graph, batch by batch: each product is one more backward through all.

    Set :attr:`whole` to what the weighted sum over the batches is divided by.
    """

    def __init__(self, leaves: Leaves, dtype: torch.dtype, allowed: float | None) -> None:
        self._leaves, self._dtype, self._allowed = leaves, dtype, allowed
        self._parts: list[tuple[float, Mapping[str, Tensor]]] = []
        self._held = _Held()
        self.bytes = 0  # what the gradients hold, and what was saved while counting
        self.full = False  # whether that was more than allowed, so that nothing is kept
        self.whole = 1.0

    def add(self, weight: float, gradient: Mapping[str, Tensor]) -> None:
        """Keep one batch's gradient, which carries its graph."""
        self._parts.append((weight, gradient))
        for g in gradient.values():
            self._held.count(g)
        self.bytes = self._held.bytes
        if self._allowed is not None and self.bytes > self._allowed:
            self.full = True
            self._parts.clear()

    def counting(self) -> AbstractContextManager[Any]:
        """Inside, what autograd saves is counted, if there is a limit to it."""
        if self._allowed is None:
            return nullcontext()
        held = self._held  # the hook lives in the graph: a reference to self would be a cycle

        def pack(x: Tensor) -> Tensor:
            held.count(x)
            return x.detach()  # x itself may be an output, which would keep its own graph alive

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)

    def hvp(self, direction: Leaves) -> dict[str, Tensor]:
        return self._sum(lambda g: second_derivative(g, self._leaves, direction, keep=True))

    def hvps(self, stack: Leaves, batched: bool) -> dict[str, Tensor]:
        products = partial(second_derivative, batched=True) if batched else second_derivatives
        return self._sum(lambda g: products(g, self._leaves, stack, keep=True))

    def _sum(self, of: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for weight, gradient in self._parts:
            add_weighted(total, of(gradient), weight / self.whole, self._dtype)
        return total


class _Held:
    """The bytes of all storages counted, each once."""

    def __init__(self) -> None:
        self.bytes, self._sizes = 0, dict[int, int]()

    def count(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        self.bytes += storage.nbytes() - self._sizes.get(storage.data_ptr(), 0)
        self._sizes[storage.data_ptr()] = storage.nbytes()


def mix(stack: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of a stack's rows, each with another weight."""

    def mixed(x: Tensor) -> Tensor:
        weights = torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device)
        added: Tensor = torch.tensordot(weights, x, dims=1)
        return added

    return {name: mixed(x) for name, x in stack.items()}


def add_weighted(
    total: dict[str, Tensor], blocks: Mapping[str, Tensor], weight: float, dtype: torch.dtype
) -> None:
    """Add weight·blocks to a total, in ``dtype``; without a copy where that changes nothing."""
    for name, x in blocks.items():
        x = x if x.dtype is dtype else x.to(dtype)
        x = x if weight == 1.0 else x * weight
        total[name] = total[name] + x if name in total else x


def first_line(e: BaseException) -> str:
    """The first line of an exception's text."""
    lines = str(e).strip().splitlines()
    return lines[0] if lines else type(e).__name__
