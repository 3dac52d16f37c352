"""An optimizer that has a monitor already: as where a notebook's cell is run again."""

from __future__ import annotations

import warnings
import weakref
from types import CellType
from typing import Any

from torch.optim import Optimizer

from geodiag.core.batch_forms import arrays_of

_Known = tuple[Any, list[Any], list[Any]]
_known: weakref.WeakKeyDictionary[Optimizer, list[_Known]] = weakref.WeakKeyDictionary()


def notice(optimizer: Optimizer, finalizer: Any, data: Any, *options: Any) -> None:
    """Warn where an attached monitor of the optimizer has the same data and the same options.

    ``finalizer``: alive as long as the new one is attached. Data are the same by identity (of their
    arrays, or of a loader), functions by their code and what it reads, and other options by what
    they show.
    """
    named = list(map(_told, options))
    given = list(arrays_of(data)) or [data]
    attached = [each for each in _known.get(optimizer, []) if each[0].alive]
    for _, other, references in attached:
        same = other == named and len(references) == len(given)
        if same and all(r() is x for r, x in zip(references, given, strict=True)):
            warnings.warn(
                "the optimizer has a monitor already that measures the same, and both do so from "
                "now on: detach() one of them, unless you mean it",
                RuntimeWarning,
                stacklevel=3,
            )
            break
    try:
        held = list(map(weakref.ref, given))
    except TypeError:  # data that cannot be told again
        held = []
    _known[optimizer] = [*attached, (finalizer, named, held)]


def _told(option: Any) -> Any:
    """What tells an option from others."""
    code = getattr(option, "__code__", None)
    if code is None:
        return repr(option)
    cells = map(_contents, option.__closure__ or ())
    names = (option.__globals__.get(name) for name in code.co_names)
    read = (*(option.__defaults__ or ()), *cells, *names)
    return code, [x if isinstance(x, (str, int, float)) else id(x) for x in read]


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None
