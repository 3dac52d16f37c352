"""Data for a problem: one batch, or a re-iterable of batches; the same for every framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from geodiag.blocks import array_namespace
from geodiag.core.batch_forms import arrays_of, batch_size, first_array, is_one_batch
from geodiag.core.description import description
from geodiag.core.validation import as_number
from geodiag.errors import ArgumentError, DataError, shown

MOST = 1_000  # batches that a loader may have which does not say how many it has
LOOKED = 4  # batches that are searched for targets that a loss may leave out
IGNORED = -100  # marks such a target


class Batches:
    """``data`` as batches: one (a tuple, dict, array or other object), or a list or loader of them.

    ``reduction="mean"``: the loss over all batches is the mean weighted by ``weight(batch)``
    (default: the length of the batch's first array), so a ragged last batch counts for what it
    holds. ``reduction="sum"``: the losses add. A loader without a length may have ``MOST`` batches.

    Attributes:
        single: whether there is one batch.
        description: what the data look like.
        notes: for the result.

    Raises:
        DataError: empty data, or a one-shot iterator.
        ArgumentError: an unknown ``reduction``, or a ``weight`` that cannot be called.
    """

    def __init__(
        self,
        data: Any,
        weight: Callable[[Any], float | None] | None = None,
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
        self._unseen = LOOKED if weight is None and reduction == "mean" else 0
        self.reduction, self.description = reduction, description(data)
        self.notes: list[str] = []
        self.single = data is None or is_one_batch(data)
        if not self.single:
            _check_iterable(data)
        self._data = (data,) if self.single else data
        if isinstance(data, list) and len(data) == 1:
            self._data, self.single = (data[0],), True
        if self.single and data is not None and _is_empty(self._data[0]):
            raise _empty(self._data[0])

    def __iter__(self) -> Iterator[Any]:
        length, seen = _length(self._data), 0
        for batch in self._data:
            if seen == max(MOST, length or 0):
                raise DataError(
                    "data= does not end",
                    got=f"more than {seen} batches of a loader that has "
                    + ("no length" if length is None else f"the length {length}"),
                    do="pass so many batches as are to be measured, e.g. "
                    "list(itertools.islice(loader, 10))",
                )
            seen += 1
            yield batch
        if not seen:
            raise _empty(self._data)

    def weigh(self, batch: Any) -> float:
        """The weight of one batch in the total: its size, or 1 when losses add."""
        if self.single or self.reduction == "sum":
            return 1.0
        if self._unseen:
            self._unseen -= 1
            if _holds_ignored(batch):
                self._unseen = 0
                self.notes.append(
                    f"batches are weighted by their length, and hold targets of {IGNORED}: a loss "
                    "that leaves those out averages over fewer, so pass weight="
                )
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
    if _length(data) == 0:
        raise _empty(data)


def _length(data: Any) -> int | None:
    """How many batches there are; None where that is not known."""
    try:
        return len(data)
    except TypeError:
        return None


def _holds_ignored(batch: Any) -> bool:
    """Whether an array of whole numbers holds the mark of targets that are left out."""
    for x in arrays_of(batch):
        try:
            xp = array_namespace(x)
            if xp.isdtype(x.dtype, "signed integer") and bool(xp.any(x == IGNORED)):
                return True
        except (
            TypeError,
            ValueError,
            RuntimeError,
        ):  # another layout or dtype than the array API's
            continue
    return False


def _is_empty(batch: Any) -> bool:
    first = first_array(batch)
    if first is None:
        return isinstance(batch, (tuple, Mapping)) and len(batch) == 0
    return 0 in first.shape


def _empty(data: Any) -> DataError:
    return DataError(
        "data= is empty", got=type(data).__name__, do="pass at least one batch with one example"
    )
