"""An optax state in a few words, for the header of a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from geodiag.core.validation import as_number


def description(state: Any) -> dict[str, Any]:
    """The names of the transformations with a state, and injected hyperparameters."""
    found = list(_states(state))
    names = [type(s).__name__.removesuffix("State") for s in found]
    known = {k: as_number(x) for s in found for k, x in _hyperparams(s).items()}
    named = {"name": ", ".join(dict.fromkeys(names))} if names else {}
    return named | {k: x for k, x in known.items() if x is not None}


def _hyperparams(state: Any) -> Mapping[str, Any]:
    found = getattr(state, "hyperparams", None)
    return found if isinstance(found, Mapping) else {}


def _states(x: Any, depth: int = 0) -> Iterator[Any]:
    """The named tuples with fields in a state, the outer ones first."""
    if depth > 16:
        return
    if isinstance(x, tuple):
        if getattr(x, "_fields", ()):
            yield x
        for each in x:
            yield from _states(each, depth + 1)
    elif isinstance(x, Mapping):
        for each in x.values():
            yield from _states(each, depth + 1)
