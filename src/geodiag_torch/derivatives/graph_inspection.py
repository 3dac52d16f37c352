"""What an autograd graph tells of a loss.

Its precision, the tensors that it was computed from, and whether it has second derivatives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from geodiag.errors import EngineError, ParameterError

# Nodes in the graph of a gradient whose second derivative is wrong, and what makes them.
WRONG = {
    "::Error": "a function marked once_differentiable",
    "CompiledFunction": "a function compiled by torch.compile, which drops the second derivative",
    "WeightNormInterface": "weight_norm, whose double backward is wrong in torch",
}
# Types whose name is not that of the node; the node's own name takes longer to read.
UNNAMED = {"CppFunction", "Error"}
REENTRANT = "CheckpointFunctionBackward"
LEAF = "AccumulateGrad"


@dataclass(frozen=True)
class LossGraph:
    """The graph of a loss.

    Attributes:
        precision: the machine epsilon of the coarsest dtype between the parameters and the loss.
        reentrant: whether it passes through a reentrant checkpoint.
        leaves: the ids of the tensors at which it ends.
        operations: a hash of its nodes, in the order in which they are visited.
        custom: whether there are backward passes among them that are not torch's own.
    """

    precision: float
    reentrant: bool
    leaves: frozenset[int]
    operations: int
    custom: bool


@dataclass(frozen=True)
class Structure:
    """The operations of a gradient's graph."""

    operations: int  # a hash of its nodes, in the order in which they are visited
    custom: bool  # whether custom functions or hooks may be among them, or among those of the loss


def _nodes(roots: list[Any]) -> Iterator[Any]:
    """Every node of a graph, once."""
    waiting = roots
    seen = {None, *waiting}
    while waiting:
        node = waiting.pop()
        yield node
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                waiting.append(following)


def graph_of(loss: Tensor) -> LossGraph:
    """What the graph of a loss tells.

    The parameters' own dtypes do not tell its precision: autocast, inside of the model too, and
    casts of the model's own (a softmax in float32, a rotary embedding) make it coarser.
    """
    nodes = list(_nodes([loss.grad_fn] if loss.grad_fn is not None else []))
    visited = tuple(type(node).__name__ for node in nodes)
    dtypes = {x.dtype for node in nodes for x in getattr(node, "_input_metadata", ())}
    eps = max(torch.finfo(t).eps for t in (loss.dtype, *dtypes) if t.is_floating_point)
    leaves = {id(n.variable) for n, kind in zip(nodes, visited, strict=True) if kind == LEAF}
    custom = any(issubclass(kind, BackwardCFunction) for kind in set(map(type, nodes)))
    custom = custom or not UNNAMED.isdisjoint(visited)
    return LossGraph(eps, REENTRANT in visited, frozenset(leaves), hash(visited), custom)


def check_reached(reached: Iterable[str]) -> None:
    """Refuse a loss that reaches measured parameters themselves, past those that replace them.

    Raises:
        ParameterError: naming the parameters, if there are any.
    """
    if names := ", ".join(map(repr, reached)):
        raise ParameterError(
            "the loss reaches measured parameters otherwise than through the module's attributes, "
            "so that derivatives would leave this part out",
            got=f"{names}, kept elsewhere (a list, a closure, an optimizer's groups)",
            do="look them up when the loss is computed, e.g. by module.parameters(); or hold them "
            "fixed, with where=",
        )


def check_graph(gradient: Mapping[str, Tensor], custom: bool) -> Structure:
    """Refuse a gradient whose second derivative is known to be dropped or wrong.

    ``autograd.grad`` visits only the nodes on a path to its inputs. The node with which a
    once-differentiable function wants to raise lies on no such path, so its curvature would count
    as zero. A constant gradient that is not zero may come from such a function too; torch's own
    operations never drop a second derivative without a node that raises.

    Args:
        gradient: of the loss, with its graph.
        custom: of the :class:`LossGraph`.

    Raises:
        EngineError: naming the parameter or the operation.
    """
    constant = [n for n, g in gradient.items() if not g.requires_grad and bool(g.any())]
    if custom and constant:
        raise EngineError(
            f"the gradient with respect to {constant[0]!r} carries no graph",
            got="a constant, or a backward pass that cannot be differentiated",
            do='pass engine="finite-difference"',
        )
    visited: list[tuple[type, str]] = []
    for node in _nodes([g.grad_fn for g in gradient.values() if g.grad_fn is not None]):
        kind = type(node)
        name = node.name() if kind.__name__ in UNNAMED else kind.__name__
        visited.append((kind, name))
    kinds = dict.fromkeys(visited)
    for (_, name), (mark, cause) in product(kinds, WRONG.items()):
        if mark in name:
            raise EngineError(
                "an operation of the model cannot be differentiated twice",
                got=cause,
                do='pass engine="finite-difference"',
            )
    custom = custom or any(issubclass(kind, BackwardCFunction) for kind, _ in kinds)
    custom = custom or bool(constant)  # a hook, which no graph shows, may have made it so
    return Structure(hash(tuple(visited)), custom)
