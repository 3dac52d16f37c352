"""Tensors that are not measured: whether a step moved them, and their names in a note."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from geodiag.blocks import Array, Blocks, array_namespace


def copied(tensors: Mapping[str, Array]) -> Blocks:
    """The tensors in memory of their own."""
    return {name: x + 0 for name, x in tensors.items()}


def changed(before: Mapping[str, Array], after: Mapping[str, Array]) -> list[str]:
    """The names of those whose entries are others now."""
    return [name for name, x in before.items() if name in after and not _same(x, after[name])]


def listed(names: Iterable[str], at_most: int = 3) -> str:
    """Names for a note: the first few, and how many more there are."""
    known = list(names)
    more = len(known) - at_most
    return ", ".join(map(repr, known[:at_most])) + (f" and {more} more" if more > 0 else "")


def _same(a: Array, b: Array) -> bool:
    if a is b:
        return True
    if tuple(a.shape) != tuple(b.shape):
        return False
    return bool(array_namespace(a).all(a == b))
