"""Public names: what is promised exists, is documented, and the documentation fits the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import geodiag
from geodiag import errors

SRC = Path(__file__).parents[2] / "src"
FILES = sorted(p for p in SRC.rglob("*.py"))

# The interface, written down apart from the code; a name leaves it only with a major version.
NAMES = {
    "Bound",
    "GeodiagError",
    "Monitor",
    "Norm",
    "Oracle",
    "Problem",
    "QuadraticNorm",
    "Record",
    "SharpnessEstimator",
    "SharpnessResult",
    "Status",
    "available_estimators",
    "available_norms",
    "blocks",
    "directional_smoothness",
    "envelopes",
    "errors",
    "hookimpl",
    "plot",
    "problem",
    "read_records",
    "register",
    "register_estimator",
    "register_norm",
    "sharpness",
    "spaces",
    "threshold",
}
NORMS = {
    "ByParameter",
    "FromFunctions",
    "Frobenius",
    "L1",
    "L2",
    "L2Over",
    "Linf",
    "MaxOver",
    "Nuclear",
    "Preconditioned",
    "RMS",
    "Scaled",
    "Spectral",
    "SumOver",
}
ESTIMATORS = {"Ascent", "Blockwise", "Enumerate", "FrankWolfe", "Lanczos"}
CHECKS = {"check_estimator", "check_norm", "check_oracle"}
PROBLEM_ARGUMENTS = {
    "loss_fn": None,
    "criterion": None,
    "data": None,
    "params": None,
    "where": None,
    "weight": None,
    "reduction": "mean",
    "shapes": None,
    "engine": "auto",
    "memory": None,
    "process_group": None,
    "stop_gradient": "constant",
    "guard": None,
}
SHARPNESS_ARGUMENTS = PROBLEM_ARGUMENTS | {
    "estimator": "auto",
    "start": None,
    "rtol": None,
    "max_hvps": None,
    "certificate": False,
    "seed": 0,
    "progress": False,
    "throw": True,
}
RESULT_FIELDS = {
    "bound",
    "direction",
    "gap",
    "history",
    "norm",
    "num_hvps",
    "residual",
    "spread",
    "state",
    "status",
    "upper",
    "value",
}


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (geodiag, NAMES | {"estimators", "norms", "testing"}),
        (geodiag.norms, NORMS),
        (geodiag.estimators, ESTIMATORS),
        (geodiag.testing, CHECKS),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_the_promised_names_exist(module, names):
    assert names <= set(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_dir_shows_the_public_names_alone():
    """No submodule, no registry: what is shown is public, and what is public is shown."""
    shown = {name for name in dir(geodiag) if not name.startswith("__")}
    assert shown == set(geodiag.__all__)
    assert "__version__" in dir(geodiag)


def test_spaces_is_an_attribute_and_can_be_imported():
    assert geodiag.spaces.Space is importlib.import_module("geodiag.core.spaces").Space


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(geodiag.sharpness, SHARPNESS_ARGUMENTS), (geodiag.problem, PROBLEM_ARGUMENTS)],
    ids=["sharpness", "problem"],
)
def test_keywords_and_their_defaults(function, arguments):
    parameters = inspect.signature(function).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert keywords == arguments


def test_result_has_its_fields():
    assert all(
        hasattr(geodiag.SharpnessResult, f) or f in geodiag.SharpnessResult.__annotations__
        for f in RESULT_FIELDS
    )


Definition = ast.FunctionDef | ast.ClassDef


def definitions(path: Path) -> Iterator[Definition]:
    """The public top-level functions and classes; hooks are documented by their specification."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            decorators = {ast.unparse(d).partition("(")[0] for d in node.decorator_list}
            if not decorators & {"hookimpl", "geodiag.hookimpl"}:
                yield node


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def section(docstring: str, title: str) -> list[str]:
    """The names that a docstring's section lists: ``name: text``, indented by one level."""
    found = re.search(rf"^( *){title}[^\n]*:\n((?:\1    .*\n?|\s*\n)*)", docstring, re.MULTILINE)
    if found is None:
        return []
    depth = len(found.group(1)) + 4
    lines = re.findall(rf"^ {{{depth}}}(\w[\w, ]*):", found.group(2), re.MULTILINE)
    return [name.strip() for line in lines for name in line.split(",")]


by_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))


@by_file
def test_public_things_have_docstrings(path):
    assert [d.name for d in definitions(path) if not ast.get_docstring(d)] == []


@by_file
def test_module_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


@by_file
def test_documented_arguments_exist(path):
    for f in functions(path):
        gathered = [a for a in (f.args.vararg, f.args.kwarg) if a is not None]
        listed = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, *gathered]
        arguments = {a.arg for a in listed}
        assert set(section(ast.get_docstring(f) or "", "Args")) <= arguments, f.name


@by_file
def test_documented_errors_exist(path):
    tree = ast.parse(path.read_text("utf-8"))
    known = {n for n, e in vars(errors).items() if inspect.isclass(e)} | {"SystemExit"}
    known |= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, Definition):
            assert set(section(ast.get_docstring(node) or "", "Raises")) <= known, node.name


def test_sections_are_read():
    """The reader above finds names, in both forms, and only those."""
    text = inspect.getdoc(geodiag.sharpness)
    assert {"model", "norm", "seed", "throw"} <= set(section(text, "Args"))
    assert section(text, "Raises") == ["NonFiniteError", "GeodiagError"]
    assert section("No sections: here", "Args") == []
