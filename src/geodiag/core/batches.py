"""Data for a problem: one batch, or a re-iterable of batches; the same for every framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from geodiag.blocks import is_array
from geodiag.core.validation import as_number
from geodiag.errors import ArgumentError, DataError, shown

DEEPEST = 32  # containers in containers that are looked into: a list may hold itself


class Batches:
    """``data`` as batches. A tuple, dict or array is one batch; a list always means batches.

    ``reduction="mean"``: the loss over all batches is the mean weighted by ``weight(batch)``
    (default: the length of the batch's first array), so a ragged last batch counts for what it
    holds. ``reduction="sum"``: the losses add.

    Raises:
        DataError: empty data, or a one-shot iterator.
        ArgumentError: an unknown ``reduction``, or a ``weight`` that cannot be called.
    """

    def __init__(
        self,
        data: Any,
        weight: Callable[[Any], float] | None = None,
        reduction: str = "mean",
    ) -> None:
        if not isinstance(reduction, str) or reduction not in ("mean", "sum"):
            raise ArgumentError(
                "reduction= must say how the loss treats a batch",
                got=shown(reduction),
                do='pass "mean" (the loss averages over a batch) or "sum"',
            )
        if weight is not None and not callable(weight):
            raise ArgumentError("weight= must be a function of a batch", got=type(weight).__name__)
        if weight is not None and reduction == "sum":
            raise ArgumentError(
                'weight= has no meaning with reduction="sum", where losses add',
                do="leave one of the two out",
            )
        self._weight: Callable[[Any], float | None] = weight or batch_size
        self.reduction = reduction
        self.single = data is None or is_one_batch(data)
        if not self.single:
            _check_iterable(data)
        self._data = (data,) if self.single else data
        if isinstance(data, list) and len(data) == 1:
            self._data, self.single = (data[0],), True
        if self.single and data is not None and _is_empty(self._data[0]):
            raise _empty(self._data[0])

    def __iter__(self) -> Iterator[Any]:
        seen = False
        for batch in self._data:
            seen = True
            yield batch
        if not seen:
            raise _empty(self._data)

    def weigh(self, batch: Any) -> float:
        """The weight of one batch in the total: its size, or 1 when losses add."""
        if self.single or self.reduction == "sum":
            return 1.0
        given = self._weight(batch)
        weight = as_number(given)
        if weight is None or not 0.0 <= weight < float("inf"):
            raise DataError(
                "a batch has no weight, which must be a finite number ≥ 0",
                got=f"{shown(given)} for a batch of type {type(batch).__name__}",
                do="pass weight=, a function from a batch to the number of its examples",
            )
        return weight

    def normalise(self, total: float) -> float:
        """What a weighted sum is divided by, given the sum of the weights."""
        if self.reduction == "sum" or self.single:
            return 1.0
        if total == 0.0:
            raise DataError("all batches have weight zero", do="check the data, or pass weight=")
        return total


def is_one_batch(data: Any) -> bool:
    """Whether ``data`` is a single batch rather than a collection of them."""
    return isinstance(data, (tuple, Mapping)) or is_array(data)


def batch_size(batch: Any) -> float | None:
    """The length of the first array in the batch (1 for a scalar); None where there is none."""
    first = _first_array(batch)
    if first is None:
        return None
    return float(first.shape[0]) if first.ndim else 1.0


def _first_array(batch: Any, depth: int = 0) -> Any:
    if is_array(batch):
        return batch
    values: Iterable[Any] = ()
    if depth == DEEPEST:
        return None
    if isinstance(batch, Mapping):
        values = batch.values()
    elif isinstance(batch, (tuple, list)):
        values = batch
    found = (_first_array(value, depth + 1) for value in values)
    return next((a for a in found if a is not None), None)


def _check_iterable(data: Any) -> None:
    iterable = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if isinstance(data, (str, bytes, bytearray, memoryview, type)) or not iterable:
        raise DataError(
            "data= has an unknown form",
            got=type(data).__name__,
            do="pass one batch (a tuple, a dict or an array), a list or loader of batches, or "
            "[batch] for a batch of another type",
        )
    if hasattr(data, "__next__"):
        raise DataError(
            "data= is a one-shot iterator; a measurement passes over the data many times",
            got=type(data).__name__,
            do="pass a list of batches (list(iterator)) or a re-iterable such as a DataLoader",
        )
    try:
        empty = len(data) == 0
    except TypeError:  # no length, or one that is not known
        empty = False
    if empty:
        raise _empty(data)


def _is_empty(batch: Any) -> bool:
    first = _first_array(batch)
    if first is None:
        return isinstance(batch, (tuple, Mapping)) and len(batch) == 0
    return 0 in first.shape


def _empty(data: Any) -> DataError:
    return DataError(
        "data= is empty", got=type(data).__name__, do="pass at least one batch with one example"
    )
