"""The core's import graph, read from its source: one way, without cycles, without late imports."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
FILES = sorted((SRC / "geodiag").rglob("*.py"))
COMMAND = {"geodiag.cli", "geodiag.__main__"}  # stands outside of the package, as a user does


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def targets(node: ast.AST) -> Iterator[str]:
    """The modules of the core that one statement imports."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:  # a name may be a submodule or something inside the module
            inner = f"{node.module}.{alias.name}"
            names.append(inner if inner in MODULES else node.module)
    for name in names:
        if name == "geodiag" or name.startswith("geodiag."):
            yield name


@functools.cache
def graph() -> dict[str, set[str]]:
    """Each module with all that it imports: for type checking and inside functions too."""
    return {
        module: {t for node in ast.walk(ast.parse(path.read_text("utf-8"))) for t in targets(node)}
        for module, path in MODULES.items()
    }


def cycle(edges: dict[str, set[str]]) -> list[str] | None:
    """A cycle of a graph, or None."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as e:
        return list(e.args[1])
    return None


def unit(module: str) -> str:
    """The room a module is in: ``norms`` for ``geodiag.norms.base``, ``measure`` for itself."""
    return ".".join(module.split(".")[:2])


def test_modules_have_no_cycle():
    edges = graph()
    assert set().union(*edges.values()) <= set(edges)
    assert cycle({m: e for m, e in edges.items() if m not in COMMAND}) is None


def test_rooms_have_no_cycle():
    """Stronger: neither do whole subpackages, so each can be read after what stands below it."""
    rooms: dict[str, set[str]] = {}
    for module, imports in graph().items():
        if module not in COMMAND | {"geodiag"}:
            rooms.setdefault(unit(module), set()).update(unit(i) for i in imports)
    assert cycle({room: edges - {room} for room, edges in rooms.items()}) is None


def test_a_cycle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None


@pytest.mark.parametrize("module", sorted(set(MODULES) - COMMAND))
def test_nothing_imports_the_package_or_the_command(module):
    assert not graph()[module] & (COMMAND | {"geodiag"})


def test_the_lowest_rooms_stand_alone():
    edges = graph()
    assert edges["geodiag.errors"] == set()
    assert edges["geodiag.blocks"] == {"geodiag.errors"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_stand_at_the_top(module):
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not {t for f in functions for node in ast.walk(f) for t in targets(node)}
