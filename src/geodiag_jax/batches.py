"""Batches made ready for compiled functions: arrays traced, everything else static.

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
from geodiag.core.batches import Batches
from geodiag.errors import DataError, ParameterError, shown
from geodiag_jax.pytree import Static
from geodiag_jax.sharding import Outside, Places, relabel


@dataclass(frozen=True)
class BatchForm:
    """Everything about a batch but its arrays; hashable."""

    treedef: Any
    static: tuple[Static | None, ...]  # None where the leaf is an array
    outside: Outside

    def arguments(self, arrays: tuple[Array, ...]) -> tuple[Any, ...]:
        """What follows ``params`` in the call of the loss."""
        rest = iter(arrays)
        leaves = [next(rest) if leaf is None else leaf.value for leaf in self.static]
        batch = jax.tree_util.tree_unflatten(self.treedef, leaves)
        return tuple(batch)


class Piece(NamedTuple):
    """One batch of a pass over the data."""

    weight: float
    form: BatchForm
    arrays: tuple[Array, ...]


class Feed:
    """The batches of a problem, in passes. A single batch is prepared once and kept.

    Raises:
        DataError: empty data, a one-shot iterator, or a batch of something unusable.
    """

    def __init__(self, data: Any, weight: Callable[[Any], float] | None, reduction: str) -> None:
        self._batches = Batches(data, weight, reduction)
        self._places = Places()
        self.single = self._batches.single
        self._kept = list(self._pieces()) if self.single else None

    def beside(self, places: Places) -> Feed:
        """The same, with what nobody has placed on each of the devices of the parameters."""
        feed = copy.copy(self)
        feed._places = places
        if self._kept is not None:
            feed._kept = [_placed(piece, places) for piece in self._kept]
        return feed

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces() if self._kept is None else iter(self._kept)

    def total(self, f: Callable[[BatchForm, tuple[Array, ...]], Any]) -> Any:
        """``f`` (a pytree) of every batch, combined over one pass."""
        return self.combine((weight, f(form, arrays)) for weight, form, arrays in self)

    def combine(self, answers: Iterable[tuple[float, Any]]) -> Any:
        """Σ weight·answer, over Σ weight where the loss averages."""
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

    def _pieces(self) -> Iterator[Piece]:
        for batch in self._batches:
            piece = Piece(self._batches.weigh(batch), *prepare(batch))
            yield _placed(piece, self._places)


def _placed(piece: Piece, places: Places) -> Piece:
    return piece._replace(arrays=tuple(map(places.settle, piece.arrays)))


def prepare(batch: Any) -> tuple[BatchForm, tuple[Array, ...]]:
    """The static form and the arrays of one batch; NumPy memory is copied.

    Raises:
        DataError: it holds itself, or what JAX cannot compute with.
    """
    try:
        leaves, treedef = jax.tree_util.tree_flatten(_arguments(batch))
    except (RecursionError, SystemError, TypeError, ValueError) as e:
        raise DataError(
            "a batch is no pytree that JAX can take apart",
            got=f"{type(batch).__name__}: {type(e).__name__}",
            do="pass arrays, in tuples, lists and dicts which end somewhere",
        ) from e
    arrays = [_to_jax(x) for x in leaves if is_array(x)]
    try:
        static = tuple(None if is_array(x) else Static(x, "a part of a batch") for x in leaves)
    except ParameterError as e:
        raise DataError(
            e.what, got=e.got, do="let batches hold arrays of numbers, and hashable options"
        ) from e
    return BatchForm(treedef, static, Outside.of(arrays)), tuple(map(relabel, arrays))


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
    except (RuntimeError, BufferError) as e:  # each framework has its own
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
