"""The import graph of a package, read from its source, and what in it breaks the order of layers.

A component is a subpackage or a module directly below the package; the package's own ``__init__``
and ``__main__`` are components too. Read are all imports: at the top, inside of functions, for type
checking alone, and calls of ``import_module`` and ``__import__`` with a literal name.
"""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Statements = list[tuple[str, str, str | None]]  # module, name inside of it or "", function
Layers = list[str]  # from the lowest: the components of each, separated by blanks


@functools.cache
def statements(source: str) -> Statements:
    """The imports of one file, with the function that each is inside of."""
    return list(_statements(ast.parse(source), None))


def _statements(node: ast.AST, function: str | None) -> Iterator[tuple[str, str, str | None]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, "", function) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from ((node.module, alias.name, function) for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value, "", function
    inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
    for child in ast.iter_child_nodes(node):
        yield from _statements(child, inner)


@dataclass(frozen=True)
class Import:
    """One module of a package imports another; ``function``: inside of which, if in any."""

    module: str
    target: str
    function: str | None


class Package:
    """The modules of the package ``name`` below ``src``, and their imports of each other."""

    def __init__(self, src: Path, name: str) -> None:
        self.name = name
        paths = sorted((src / name).rglob("*.py"))
        assert paths, f"no source in {src / name}"
        self.files = {self._module(path.relative_to(src)): path for path in paths}
        self.imports = [
            Import(module, target, function)
            for module, path in self.files.items()
            for target, function in self._targets(path)
        ]

    def _module(self, path: Path) -> str:
        parts = path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)

    def _targets(self, path: Path) -> Iterator[tuple[str, str | None]]:
        for name, member, function in statements(path.read_text("utf-8")):
            if name != self.name and not name.startswith(self.name + "."):
                continue
            found = f"{name}.{member}"  # a submodule, or something inside of the module
            target = found if found in self.files else name
            yield (f"{self.name}.__init__" if target == self.name else target), function

    def component(self, module: str) -> str:
        """``norms`` for ``geodiag.norms.base``."""
        return module.split(".")[1]

    def faults(self, layers: Layers, late: set[tuple[str, str]]) -> list[str]:
        """What breaks the order, in words.

        Args:
            layers: a component may import those of lower layers alone.
            late: the imports that may be inside of a function, as (module, target).
        """
        height = {component: i for i, layer in enumerate(layers) for component in layer.split()}
        components = {self.component(module) for module in self.files}
        faults = [
            f"the component {component!r} is in no layer"
            for component in sorted(components - set(height))
        ]
        faults += [
            f"there is no component {component!r}" for component in sorted(set(height) - components)
        ]
        for i in self.imports:
            here, there = self.component(i.module), self.component(i.target)
            if i.target not in self.files:
                faults.append(f"{i.module} imports {i.target}, which does not exist")
            elif here != there and here in height and not height[there] < height[here]:
                faults.append(
                    f"{i.module} imports {i.target}: the component {there!r} is not below {here!r}"
                )
            if i.function is not None and (i.module, i.target) not in late:
                faults.append(f"{i.module} imports {i.target} inside of {i.function}()")
        modules = {module: set[str]() for module in self.files}
        between = {component: set[str]() for component in components}
        for i in self.imports:
            modules[i.module].add(i.target)
            if self.component(i.module) != self.component(i.target):
                between[self.component(i.module)].add(self.component(i.target))
        for kind, edges in (("modules", modules), ("components", between)):
            circle = _circle(edges)
            faults += [f"a circle of {kind}: {' → '.join(circle)}"] if circle else []
        return faults


def _circle(edges: dict[str, set[str]]) -> list[str] | None:
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as e:
        return list(e.args[1])
    return None
