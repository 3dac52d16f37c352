"""Choosing tensors by name: regular expressions, lists of them, or a predicate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from geodiag.blocks import is_array
from geodiag.core.validation import is_true
from geodiag.errors import ArgumentError, ParameterError, shown

Where: TypeAlias = "str | Iterable[str] | Callable[[str, Any], bool] | None"


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """``re.compile`` with geodiag's error; patterns are searched for anywhere in a name."""
    try:
        if not isinstance(pattern, str):
            raise TypeError(f"it is of type {type(pattern).__name__}")
        return re.compile(pattern)
    except (re.error, TypeError, ValueError, OverflowError, RecursionError) as e:
        raise ArgumentError(
            "a name pattern is not a regular expression",
            got=f"{shown(pattern)} ({e})",
            do="escape special characters, e.g. r'layers\\.0\\.weight'",
        ) from e


def no_match(pattern: str, names: Iterable[str]) -> ParameterError:
    """The error for a pattern that matches no tensor."""
    known = list(names)
    shown = ", ".join(known[:8]) + (" …" if len(known) > 8 else "")
    return ParameterError(
        f"the pattern {pattern!r} matches no parameter",
        got=f"parameters {shown or '(none)'}",
        do="correct the pattern (it is searched for anywhere in the name, as by re.search)",
    )


def select(arrays: Mapping[str, Any], where: Where) -> dict[str, Any]:
    """The entries of ``arrays`` that ``where`` chooses, in their order.

    ``where``: None (all), a regular expression, an iterable of them (any may match; each must
    match something), or a predicate ``(name, array) -> bool``.

    Raises:
        ParameterError: when a pattern, or the predicate, matches nothing.
        ArgumentError: when ``where`` is none of the above.
    """
    if where is None:
        return dict(arrays)
    if callable(where) and not isinstance(where, type):
        chosen = {
            name: x for name, x in arrays.items() if is_true(where(name, x), "where=(name, array)")
        }
        if not chosen:
            raise no_match(getattr(where, "__name__", "where"), arrays)
        return chosen
    patterns = [where] if isinstance(where, str) else where
    if not isinstance(patterns, Iterable) or is_array(patterns):
        raise ArgumentError(
            "where= must be a regular expression, a list of them, or a predicate (name, array)",
            got=type(where).__name__,
            do="pass e.g. where=r'weight$' or where=lambda name, x: x.ndim == 2",
        )
    picked: set[str] = set()
    for pattern in patterns:
        regex = compile_pattern(pattern)
        hits = {name for name in arrays if regex.search(name)}
        if not hits:
            raise no_match(pattern, arrays)
        picked |= hits
    if not picked:
        raise no_match("(empty list)", arrays)
    return {name: x for name, x in arrays.items() if name in picked}


def assign(patterns: Iterable[str], names: Iterable[str]) -> dict[str, list[str]]:
    """For each pattern, the names it is the first to match.

    Raises:
        ParameterError: when a pattern matches no name at all.
    """
    names = list(names)
    compiled = {pattern: compile_pattern(pattern) for pattern in patterns}
    for pattern, regex in compiled.items():
        if not any(regex.search(name) for name in names):
            raise no_match(pattern, names)
    groups: dict[str, list[str]] = {pattern: [] for pattern in compiled}
    for name in names:
        for pattern, regex in compiled.items():
            if regex.search(name):
                groups[pattern].append(name)
                break
    return groups
