"""The forms of a batch: arrays, containers of arrays, and objects with arrays as attributes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from geodiag.blocks import is_array
from geodiag.errors import DataError, LossError, first_line

DEEPEST = 32  # containers in containers that are looked into: a list may hold itself
ONE_BATCH = (
    "data= is a list, but taken as one batch, since the loss does not take its parts; pass a tuple"
)


def is_one_batch(data: Any) -> bool:
    """Whether ``data`` is a single batch rather than a collection of them.

    A tuple, a dict or an array is, and an object that holds arrays and cannot be iterated over.
    """
    if isinstance(data, (tuple, Mapping)) or is_array(data):
        return True
    return not _is_iterable(data) and holds_arrays(data)


def is_unsure(data: Any) -> bool:
    """Whether ``data`` may be one batch although it can be iterated over.

    A list that holds arrays, such as the [x, y] that a loader yields, or an object with arrays as
    attributes.
    """
    if isinstance(data, list):
        return any(map(is_array, data))
    return not is_one_batch(data) and not hasattr(data, "dataset") and holds_arrays(data)


def one_or_many(
    data: Any, failure: Callable[[Any], Exception | None]
) -> tuple[Any, tuple[str, ...]]:
    """``data`` that :func:`is_unsure`, or ``[data]`` if it must be one batch; and notes for a list.

    Does the loss take the first and the last of the parts, and if not, does it take the whole?
    ``failure(batch)``: what the loss raises; None where it works.

    Raises:
        DataError: it takes neither.
        LossError: what the loss returns for one of them cannot be measured.
    """
    several = isinstance(data, list)
    parts = data[:1] + data[1:][-1:] if several else list(islice(iter(data), 1))
    of_part = next((e for e in map(failure, parts) if e is not None), None)
    if of_part is None:
        return data, ()
    of_whole = failure(data)
    if of_whole is None:
        return [data], (ONE_BATCH,) if several else ()
    for e in (of_part, of_whole):
        if isinstance(e, LossError):
            raise e
    raise DataError(
        "the loss takes neither data= as one batch nor its parts as batches",
        got=f"of a part: {first_line(of_part)}; of the whole: {first_line(of_whole)}",
        do="pass one batch as a tuple, e.g. (x, y), and several as a list or loader of them",
    ) from of_part


def attributes(x: Any) -> dict[str, Any]:
    """The attributes of an object that may be a batch; none of functions, classes and modules."""
    if isinstance(x, (type, str, bytes)) or inspect.isroutine(x) or inspect.ismodule(x):
        return {}
    if is_array(x) or hasattr(x, "named_parameters"):
        return {}
    if dataclasses.is_dataclass(x):
        names = [field.name for field in dataclasses.fields(x)]
    else:
        slots = (getattr(kind, "__slots__", ()) for kind in type(x).__mro__)
        names = [n for some in slots for n in ((some,) if isinstance(some, str) else some)]
        names += list(getattr(x, "__dict__", {}))
    return {name: getattr(x, name) for name in names if hasattr(x, name)}


def holds_arrays(x: Any) -> bool:
    """Whether an attribute of an object is an array, or a container of arrays."""
    if isinstance(x, (Mapping, tuple, list)):
        return False
    return any(first_array(value) is not None for value in attributes(x).values())


def batch_size(batch: Any) -> float | None:
    """The length of the first array in the batch (1 for a scalar); None where there is none.

    Of an object: that of all its arrays, or its ``num_graphs`` where it has so many targets ``y``;
    None where they are of several lengths.
    """
    first = first_array(batch)
    if first is not None:
        return _length(first)
    named = attributes(batch)
    lengths = {_length(x) for value in named.values() for x in arrays_of(value)}
    graphs, targets = getattr(batch, "num_graphs", None), getattr(batch, "y", None)
    if is_array(targets) and graphs is not None and _length(targets) == graphs:
        return float(graphs)
    return lengths.pop() if len(lengths) == 1 else None


def first_array(batch: Any) -> Any:
    """The first array in a batch, or in containers in it; None where there is none."""
    return next(arrays_of(batch), None)


def arrays_of(batch: Any, depth: int = 0) -> Iterator[Any]:
    """The arrays of a batch, and of containers in it."""
    if is_array(batch):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)) and depth < DEEPEST:
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from arrays_of(value, depth + 1)


def _length(x: Any) -> float:
    return float(x.shape[0]) if x.ndim else 1.0


def _is_iterable(x: Any) -> bool:
    return hasattr(x, "__iter__") or hasattr(x, "__getitem__")
