"""Every name and every path that the documentation and the docstrings mention exists."""

from __future__ import annotations

import ast
import re
from importlib import import_module, util
from pathlib import Path

import pytest

import geodiag

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
NAME = re.compile(r"(?<![\w/.-])(geodiag(?:_torch|_jax)?(?:\.[A-Za-z_]\w*)+)")
IMPORT = re.compile(r"^ *(?:>>> )?from (geodiag[\w.]*) import (.+)$", re.MULTILINE)
PATH = re.compile(
    r"(?<![\w/.-])((?:src|tests|docs|benchmarks|examples)/[\w./-]+|geodiag\w*/[\w/]+\.py)"
)
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def docstrings(path: Path) -> str:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, kinds)]
    return "\n".join(ast.get_docstring(n) or "" for n in nodes)


TEXTS = {p: p.read_text("utf-8") for p in PAGES} | {p: docstrings(p) for p in SOURCES}


def names(text: str) -> set[str]:
    """Dotted names, as they are used and as they are imported."""
    found = {n for n in NAME.findall(text) if not n.endswith((".py", ".md", ".csv", ".jsonl"))}
    for module, listed in IMPORT.findall(text):
        found |= {f"{module}.{n}" for n in re.findall(r"\b(\w+)(?: as \w+)?", listed.split("#")[0])}
    return found


def exists(name: str) -> bool:
    """Whether the name is a module, or an attribute of one (a field of a class counts)."""
    parts = name.split(".")
    if parts[0] != "geodiag":
        pytest.importorskip(parts[0])
    module, rest = parts[0], parts[1:]
    while rest and util.find_spec(f"{module}.{rest[0]}") is not None:
        module, rest = f"{module}.{rest[0]}", rest[1:]
        if not hasattr(import_module(module), "__path__"):
            break
    thing = import_module(module)
    for part in rest:
        if not hasattr(thing, part) and part not in getattr(thing, "__annotations__", {}):
            return False
        thing = getattr(thing, part, None)
    return True


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_exist(path):
    assert [n for n in sorted(names(TEXTS[path])) if not exists(n)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_pages_use_public_names_alone(path):
    used = {n.split(".")[1] for n in names(TEXTS[path]) if n.startswith("geodiag.")}
    assert used - {*geodiag.__all__, "__version__"} == set()


def test_names_are_found_and_told_apart():
    assert names("`geodiag.norms.L2()`\n    >>> from geodiag import spaces as s\n") == {
        "geodiag.norms.L2",
        "geodiag.spaces",
    }
    assert exists("geodiag.norms.L2")
    assert exists("geodiag.Record.step")
    assert not exists("geodiag.norms.L7")
    assert not exists("geodiag.no_such_module.f")


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_paths_exist(path):
    """A path stands for a file of the repository, or for one of an importable package."""
    found = {p.rstrip("./") for p in PATH.findall(TEXTS[path])}
    places = (ROOT, ROOT / "src")
    assert [p for p in sorted(found) if not any((place / p).exists() for place in places)] == []
    if path.suffix == ".md":
        links = set(LINK.findall(TEXTS[path]))
        assert [n for n in sorted(links) if not (path.parent / n).exists()] == []
