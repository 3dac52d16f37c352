"""What a function reads and changes apart from its arguments, by its bytecode."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# A container on which the loss calls these is taken for a record, which it does not read.
MUTATING = {
    *("append", "appendleft", "extend", "insert", "pop", "popleft", "remove", "sort", "reverse"),
    *("update", "setdefault", "popitem", "add", "discard", "clear", "fill"),
}
_LOADS = (
    *("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"),
    *("LOAD_FROM_DICT_OR_GLOBALS", "LOAD_FROM_DICT_OR_DEREF"),
)
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_CHANGES = ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE")
_ITEMS = ("BINARY_SUBSCR", *_CHANGES, "COPY")  # the last where it is name["key"] += …


class Everything:
    """The entries of a container that is changed as a whole."""


class Reads(NamedTuple):
    """The names that a function reads and writes, those written inside it included."""

    global_names: frozenset[str]
    attributes: tuple[str, ...]  # and not written
    written: frozenset[str]  # variables: counters, say, which no loss depends on
    keys: Mapping[str, frozenset[Any]]  # by names that are read as name["key"] alone
    changed: Mapping[str, frozenset[Any]]  # keys of entries that it changes, or Everything

    def counts(self, name: str, key: Any = Everything) -> bool:
        """Whether an entry of a container, or the whole of it, is read alone."""
        changed = self.changed.get(name, frozenset())
        return not changed if key is Everything else not {Everything, key} & changed


@functools.lru_cache(maxsize=1024)
def reads_of(code: types.CodeType) -> Reads:
    """The names that a function reads and writes."""
    global_names, attributes, written, put = set(), set(), set(), set()
    keys: dict[str, set[Any]] = {}
    changed: dict[str, set[Any]] = {}
    whole = set()  # names that are read otherwise than as name["key"]
    found = list(_instructions(code))
    for i, x in enumerate(found):
        if x.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            global_names.add(x.argval)
        elif x.opname in (*_ATTRIBUTES, "LOAD_SUPER_ATTR"):
            attributes.add(x.argval)
        elif x.opname in ("STORE_DEREF", "STORE_GLOBAL"):
            written.add(x.argval)
        elif x.opname == "STORE_ATTR":
            put.add(x.argval)
        if x.opname in _LOADS:
            if [each.opname for each in found[i + 1 : i + 3]] == ["LOAD_CONST", "BINARY_SUBSCR"]:
                keys.setdefault(x.argval, set()).add(found[i + 1].argval)
            else:
                whole.add(x.argval)
        if x.opname in (*_LOADS, *_ATTRIBUTES) and _is_changed(found, i):
            name = x.argval if x.opname in _LOADS else f".{x.argval}"
            changed.setdefault(name, set()).add(_key(found, i))
    return Reads(
        frozenset(global_names),
        tuple(sorted(attributes - put)),
        frozenset(written),
        {name: frozenset(some) for name, some in keys.items() if name not in whole},
        {name: frozenset(some) for name, some in changed.items()},
    )


def _is_changed(found: list[dis.Instruction], i: int) -> bool:
    """Whether the value that instruction ``i`` loads is changed, or an entry of it, as it is used.

    Followed on the stack up to the instruction that uses it. In doubt it is not: then what it holds
    is compared, which is never wrong.
    """
    above = int(found[i].opname == "LOAD_METHOD")  # values above it
    for x in found[i + 1 :]:
        if x.opname in _ATTRIBUTES and not above:
            return x.argval in MUTATING
        effect = dis.stack_effect(x.opcode, x.arg)
        popped = (0 if x.opname in _CHANGES else 1) - effect
        if popped > above:
            if x.opname in _CHANGES:
                return True
            if x.opname != "BINARY_SUBSCR":
                return False
            above = 0  # an entry of it
        else:
            above += effect
        if x.opcode in dis.hasjrel or x.opcode in dis.hasjabs:
            return False
    return False


def _key(found: list[dis.Instruction], i: int) -> Any:
    index, use = [*found[i + 1 : i + 3], found[i], found[i]][:2]
    plain = index.opname == "LOAD_CONST" and use.opname in _ITEMS
    return index.argval if plain else Everything


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)
