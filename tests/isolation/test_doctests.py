"""The examples in docstrings run, and each public name has one.

Each example may use ``np``, ``geodiag`` and the names of its module without importing them.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import numpy as np
import pytest

import geodiag
from geodiag.plugins import registry

# The public classes and functions; geodiag.hookimpl is pluggy's own object.
NAMES = {
    "geodiag": """
        Bound Cost CriticalLR DirectionalSmoothness GeodiagError Monitor Norm Oracle Problem
        QuadraticNorm RealizedEdge Record SharpnessEstimator SharpnessResult Status Threshold Update
        along available_estimators available_norms critical_lr directional_smoothness estimate_cost
        plot problem read_records read_runs realized_edge register register_estimator register_norm
        sharpness threshold to_pandas to_polars
    """,
    "geodiag.norms": """
        ByParameter FromFunctions Frobenius L1 L2 L2Over Linf MaxOver Muon Nuclear Preconditioned
        RMS Scaled Spectral SumOver
    """,
    "geodiag.estimators": """
        Ascent Blockwise Enumerate FrankWolfe Lanczos Measurement Options SearchMode as_start choose
    """,
    "geodiag.testing": "check_estimator check_norm check_oracle",
    "geodiag_torch": "NonEuclideanGD OptimizerMonitor TorchProblem attach",
    "geodiag_jax": """
        JaxProblem Monitor Sharpness Tracker TrackerState geometry non_euclidean_gd tracker
    """,
}
# Needs an optional package that the tests need not have.
OPTIONAL = ("geodiag_torch.callbacks.",)


def modules() -> Iterator[str]:
    for package in ("geodiag", "geodiag_torch", "geodiag_jax"):
        yield package
        try:
            found = importlib.import_module(package)
        except ImportError:
            continue
        for info in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not info.name.startswith(OPTIONAL) and not info.name.endswith("__main__"):
                yield info.name


def examples(module: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
    return [each for each in found if each.examples]


EXAMPLES = {each.name: each for module in modules() for each in examples(module)}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    registered = {kind: dict(found) for kind, found in registry._registered.items()}
    # What an example registers is forgotten.
    monkeypatch.setattr(registry, "_registered", registered)
    known = {plugin for plugin, _ in registry._manager.list_name_plugin()}
    test, said = EXAMPLES[name], []
    test.globs.update(np=np, geodiag=geodiag)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.append)
    for plugin in {n for n, _ in registry._manager.list_name_plugin()} - known - registry._tried:
        registry._manager.unregister(name=plugin)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


PUBLIC = [(module, name) for module, names in NAMES.items() for name in names.split()]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda x: x)
def test_public_names_have_an_example(module, name):
    found = getattr(pytest.importorskip(module), name)
    assert ">>> " in (inspect.getdoc(found) or "")


def test_no_public_name_is_forgotten():
    shown = {n for n in geodiag.__all__ if not inspect.ismodule(getattr(geodiag, n))}
    assert shown - {"hookimpl"} == set(NAMES["geodiag"].split())
    for module in ("geodiag.norms", "geodiag.estimators", "geodiag.testing"):
        assert set(NAMES[module].split()) <= set(importlib.import_module(module).__all__)
