"""Parameters that a step has written to, so that the point before it is gone.

JAX arrays cannot be written to, but what holds them can: the states of ``flax.nnx`` share their
variables with the live model, a dict may be updated in place, and NumPy arrays are memory.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import jax
import numpy as np

from geodiag_jax.deferred import copied
from geodiag_jax.pytree import leaves_of

_VARIABLES = "flax.nnx"  # where the class is, which is not imported


def shared_by(before: Any, after: Any) -> str:
    """What two points share that a step may have written to, in a sentence; "" if nothing.

    Arrays that are the same in both are fine, as those of parameters that are not trained, unless
    nothing differs and a dict, a list or NumPy memory is shared.
    """
    earlier = {id(node): node for node in _nodes(before)}
    shared = [node for node in _nodes(after) if id(node) in earlier]
    names = [type(node).__name__ for node in shared if _is_variable(node)]
    pairs = list(zip(leaves_of(before), leaves_of(after), strict=False))
    if not names and all(_same(x, y) for x, y in pairs):
        names = [type(node).__name__ for node in shared if _is_mutable(node)]
        names += [type(x).__name__ for x, _ in pairs if isinstance(x, np.ndarray)]
    if not names:
        return ""
    return (
        f"params and new_params hold the same {names[0]}, so the point before the step is gone if "
        "the step writes to it: pass a copy, jax.tree.map(jnp.copy, params), or call "
        "before(step, params) and after(params)"
    )


def snapshot(tree: Any) -> Any:
    """``tree``, or a copy of its arrays where it holds variables that a step writes to."""
    return copied(tree) if any(map(_is_variable, _nodes(tree))) else tree


def _nodes(tree: Any) -> Iterator[Any]:
    """The objects of a pytree that hold others."""
    children = jax.tree_util.default_registry.flatten_one_level(tree)
    if children is not None and tree is not None:
        yield tree
        for child in children[0]:
            yield from _nodes(child)


def _is_variable(node: Any) -> bool:
    bases = type(node).__mro__
    return any(b.__name__ == "Variable" and b.__module__.startswith(_VARIABLES) for b in bases)


def _is_mutable(node: Any) -> bool:
    """Whether a node is a dict, a list, or an object whose attributes may be set."""
    if isinstance(node, (list, MutableMapping)) or _is_variable(node):
        return True
    frozen = getattr(getattr(node, "__dataclass_params__", None), "frozen", None)
    return frozen is False


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return bool(np.shares_memory(x, y))
    return x is y
