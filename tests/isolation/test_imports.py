"""Who may import whom: read from the source, and tried in fresh interpreters."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import geodiag

SRC = Path(__file__).parents[2] / "src"
CORE = {"geodiag", "numpy", "array_api_compat", "pluggy"}
# What only these files of the core may import; their users have the extras installed.
EXTRAS = {
    "estimators": {"tqdm"},
    "experiments": {"matplotlib", "rich", "sklearn"},
    "report": {"matplotlib", "plotly", "rich"},
    "sinks": {"mlflow", "tensorboard", "wandb"},
}
TORCH = {"torch", "geodiag_torch", "lightning", "transformers", "torchvision"}
JAX = {"jax", "jaxlib", "geodiag_jax", "optax", "flax", "equinox", "chex"}
FRAMEWORKS = TORCH | JAX
OPTIONAL = set().union(*EXTRAS.values()) | {"scipy", "pytest"}


def sources(package: str) -> list[Path]:
    found = sorted((SRC / package).rglob("*.py"))
    assert found, f"no source in {package}"
    return found


def imported(path: Path) -> set[str]:
    """The full names of the modules that a file imports, anywhere, in whatever way."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return names


def roots(path: Path) -> set[str]:
    """The distributions behind :func:`imported`, without the standard library."""
    return {name.partition(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sources("geodiag"), ids=lambda p: str(p.relative_to(SRC)))
def test_core_imports_its_dependencies_alone(path):
    unit = path.relative_to(SRC / "geodiag").parts[0].removesuffix(".py")
    assert roots(path) <= CORE | EXTRAS.get(unit, set())


@pytest.mark.parametrize(
    ("package", "foreign"), [("geodiag_torch", JAX), ("geodiag_jax", TORCH)], ids=["torch", "jax"]
)
def test_adapters_do_not_know_each_other(package, foreign):
    for path in sources(package):
        assert not roots(path) & (foreign | {"pytest", "hypothesis", "scipy"}), path


@pytest.mark.parametrize("package", ["geodiag_torch", "geodiag_jax"])
def test_adapters_use_public_names_of_the_core(package):
    private = re.compile(r"from geodiag[\w.]* import [^\n]*\b_\w+|geodiag\.(\w+\.)*_[a-z]")
    for path in sources(package):
        text = path.read_text(encoding="utf-8")
        assert not private.search(re.sub(r"\(\s+", "(", text)), path


def loaded(python, code: str) -> set[str]:
    """The top-level modules that are loaded after ``code`` in a fresh interpreter."""
    done = python(f"{code}\nimport sys; print(*{{m.partition('.')[0] for m in sys.modules}})")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import geodiag",
        "import geodiag; geodiag.available_norms()",
        "import geodiag, numpy as np; geodiag.sharpness(np.diag([2.0, 1.0]), 'linf')",
        "import geodiag.cli; geodiag.cli.main(['norms']); print()",
    ],
    ids=["import", "available_norms", "sharpness", "cli"],
)
def test_core_runs_without_a_framework(python, code):
    modules = loaded(python, code)
    assert "geodiag" in modules
    assert not modules & (FRAMEWORKS | OPTIONAL)


@pytest.mark.parametrize(
    ("mine", "foreign"), [("torch", JAX), ("jax", TORCH)], ids=["torch", "jax"]
)
def test_one_framework_does_not_load_the_other(python, mine, foreign):
    code = f"import {mine}, geodiag; geodiag.available_norms(); import geodiag_{mine}.plugin"
    modules = loaded(python, code)
    assert f"geodiag_{mine}" in modules
    assert not modules & foreign


def test_framework_imported_after_the_core_is_found(python):
    """The entry point named after a framework loads at the first look-up after its import."""
    code = (
        "import sys, geodiag; geodiag.available_norms(); assert 'geodiag_torch' not in sys.modules"
    )
    modules = loaded(python, f"{code}; import torch; geodiag.available_norms()")
    assert "geodiag_torch" in modules


# What a measurement does not need, or not before plugins are looked for: most of the time that
# `import geodiag` would take.
NOT_YET = {
    "csv",
    "email",
    "html",
    "importlib.metadata",
    "json",
    "tempfile",
    "urllib",
    "zipfile",
    *(f"geodiag.{name}" for name in ("cli", "experiments", "monitoring", "records", "report")),
    *(f"geodiag.{name}" for name in ("sinks", "testing")),
}


def test_import_loads_what_a_measurement_needs(python):
    """And nothing more, beyond what NumPy loads: how long it takes, `make bench` shows."""
    code = (
        "import sys, numpy; before = {*sys.modules}; import geodiag\n"
        "print(*{*sys.modules} - before)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    new = set(done.stdout.split())
    assert "geodiag.sharpness" in new
    assert not new & NOT_YET


@pytest.mark.parametrize("name", ["Monitor", "Record", "plot", "read_records", "sinks", "testing"])
def test_names_that_load_when_used(python, name):
    """As an attribute and by `from geodiag import`, each in an interpreter of its own."""
    for code in (f"import geodiag; geodiag.{name}", f"from geodiag import {name}"):
        done = python(f"{code}; import geodiag; assert {name!r} in dir(geodiag)")
        assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'sharpnes'"):
        geodiag.sharpnes  # noqa: B018
