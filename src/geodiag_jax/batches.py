"""Batches prepared for compiled functions: arrays traced, everything else static.

A tuple (or list) batch is spread over the loss's arguments, ``loss(params, *batch)``; a dict or a
single array is passed whole, ``loss(params, batch)``; without data it is ``loss(params)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geodiag.blocks import Array, is_array, to_numpy
from geodiag.core.batch_forms import first_array, holds_arrays
from geodiag.core.batches import Batches
from geodiag.errors import DataError, ParameterError, shown
from geodiag_jax.pytree import Static, flatten, wide
from geodiag_jax.rng import NOT_GIVEN_BACK, Draws
from geodiag_jax.sharding import Placement, UserSharding, with_auto_axes


@dataclass(frozen=True)
class StaticBatch:
    """A batch without its arrays; hashable, as a static argument of compiled functions."""

    treedef: Any
    static: tuple[Static | None, ...]  # None where the leaf is an array
    user_sharding: UserSharding

    def arguments(self, arrays: tuple[Array, ...]) -> tuple[Any, ...]:
        """What follows ``params`` in the call of the loss."""
        rest = iter(arrays)
        leaves = [next(rest) if leaf is None else leaf.value for leaf in self.static]
        batch = jax.tree_util.tree_unflatten(self.treedef, leaves)
        return tuple(batch)


class PreparedBatch(NamedTuple):
    """One batch of a pass over the data: its weight, static part and arrays."""

    weight: float
    static: StaticBatch
    arrays: tuple[Array, ...]


class PreparedBatches:
    """The batches of a problem, in passes. A single batch is prepared once and kept."""

    def __init__(self, data: Any, weight: Callable[[Any], float] | None, reduction: str) -> None:
        self._batches = Batches(data, weight, reduction)
        self._placement, self._draws, self._wide = Placement(), Draws(data), False
        self.single, self.notes = self._batches.single, self._batches.notes
        self.description = self._batches.description
        self._kept = list(self._prepared()) if self.single else None

    def placed(self, placement: Placement) -> PreparedBatches:
        """The same batches, with uncommitted arrays on each of the devices of the parameters."""
        found = copy.copy(self)
        found._placement = placement
        if self._kept is not None:
            found._kept = [_placed(batch, placement) for batch in self._kept]
        return found

    def in_float32(self) -> PreparedBatches:
        """The same batches, with floating arrays in at least 32 bits."""
        found = copy.copy(self)
        found._wide = True
        if self._kept is not None:
            found._kept = list(map(_widened, self._kept))
        return found

    def __iter__(self) -> Iterator[PreparedBatch]:
        return self._prepared() if self._kept is None else iter(self._kept)

    def combine(self, answers: Iterable[tuple[float, Any]]) -> Any:
        """Σ weight·answer (a pytree) over one pass, divided by Σ weight where the loss averages."""
        total, weights = None, 0.0
        for weight, answer in answers:
            if self.single:
                return answer
            weights += weight
            total = _add_scaled(total, answer, weight)
        divisor = self._batches.normalise(weights)
        return jax.tree_util.tree_map(lambda x: x / divisor, total)

    def shares(self, answers: list[tuple[float, Any]]) -> list[tuple[float, Any]]:
        """The answers of one pass with the coefficients that :meth:`combine` gives them."""
        divisor = self._batches.normalise(sum(weight for weight, _ in answers))
        return [(weight / divisor, answer) for weight, answer in answers]

    def _prepared(self) -> Iterator[PreparedBatch]:
        for batch in self._draws.apart(self._batches):
            batch = PreparedBatch(self._batches.weigh(batch), *prepare(batch))
            placed = _placed(batch, self._placement)
            yield _widened(placed) if self._wide else placed
        if self._draws.left and NOT_GIVEN_BACK not in self.notes:
            self.notes.append(NOT_GIVEN_BACK)


def _placed(batch: PreparedBatch, placement: Placement) -> PreparedBatch:
    return batch._replace(arrays=tuple(map(placement.place, batch.arrays)))


def _widened(batch: PreparedBatch) -> PreparedBatch:
    return batch._replace(arrays=tuple(map(wide, batch.arrays)))


def prepare(batch: Any) -> tuple[StaticBatch, tuple[Array, ...]]:
    """The static part and the arrays of one batch; NumPy memory is copied."""
    try:
        paths, treedef = flatten(_arguments(batch), "a batch")
        leaves = [leaf for _, leaf in paths]
        for x in leaves:
            if not is_array(x) and (holds_arrays(x) or first_array(x) is not None):
                raise DataError(
                    "a batch holds arrays in an object that JAX does not know as a pytree",
                    got=f"{type(x).__module__}.{type(x).__qualname__}",
                    do="pass its arrays in a tuple or a dict, or register its type, e.g. by "
                    "jax.tree_util.register_dataclass",
                )
        static = tuple(None if is_array(x) else Static(x, "a part of a batch") for x in leaves)
    except ParameterError as e:
        do = "let batches be finitely nested tuples, lists and dicts of arrays and hashable options"
        raise DataError(e.what, got=e.got, do=do) from e
    arrays = [_to_jax(x) for x in leaves if is_array(x)]
    return StaticBatch(treedef, static, UserSharding.of(arrays)), tuple(map(with_auto_axes, arrays))


def _arguments(batch: Any) -> tuple[Any, ...]:
    """What the loss takes after the parameters."""
    if batch is None:
        return ()
    if isinstance(batch, (tuple, list)):
        return tuple(batch)
    if isinstance(batch, Mapping) and jax.tree_util.all_leaves([batch]):
        return (dict(batch),)  # a mapping that JAX does not know as a pytree
    return (batch,)


def _to_jax(x: Any) -> Array:
    if isinstance(x, jax.Array):
        return x
    try:
        host = np.array(x) if isinstance(x, (np.ndarray, np.generic)) else to_numpy(x)
    except (RuntimeError, BufferError, TypeError) as e:  # each framework has its own
        raise DataError("a batch holds an array that cannot be read", got=shown(e)) from e
    if host.dtype.kind in "OUSmM":
        raise DataError(
            "a batch holds an array that JAX cannot compute with",
            got=f"dtype {host.dtype}",
            do="encode it as numbers",
        )
    return jnp.asarray(host)


def _add_scaled(total: Any, value: Any, weight: float) -> Any:
    if total is None:
        return jax.tree_util.tree_map(lambda x: x * weight, value)
    return jax.tree_util.tree_map(lambda t, x: t + x * weight, total, value)
