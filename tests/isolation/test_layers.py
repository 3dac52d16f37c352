"""The layers of all three packages: no circles, no late imports, each component in its layer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.isolation.import_graph import Package

SRC = Path(__file__).parents[2] / "src"

# From the lowest. A component imports only components of lower layers, never one beside it.
LAYERS = {
    "geodiag": [
        "errors",
        "blocks",
        "core",
        "results",
        "envelopes oracles",
        "norms",
        "solvers optimizers",
        "estimators",
        "certificates plugins testing",
        "problems",
        "sharpness directional critical_lr",
        "realized_edge cost",
        "records",
        "sinks",
        "monitoring",
        "report",
        "experiments checkpoints",
        "__init__",
        "cli",
        "__main__",
    ],
    "geodiag_torch": [
        "state",
        "ranks",
        "derivatives",
        "oracle",
        "sharding",
        "problem",
        "optimizers",
        "optimizer_monitor",
        "attach",
        "callbacks experiments checkpoints",
        "plugin",
        "__init__",
    ],
    "geodiag_jax": [
        "sharding flags",
        "pytree",
        "loss_contents loss_reads rng",
        "outside_state",
        "loss_key batches",
        "derivatives",
        "precision programs inspection",
        "stopped verdict in_float32",
        "oracle",
        "problem",
        "optimizers tracking deferred",
        "aliasing",
        "monitor checkpoints",
        "experiments",
        "plugin",
        "__init__",
    ],
}
# Half a second of torch.distributed, for those alone who use it already.
LATE = {("geodiag_torch.sharding.detection", "geodiag_torch.sharding.fsdp")}


@pytest.fixture
def faults(tmp_path):
    """What is found in a copy of a package to which files have been added, or lines to files."""

    def found(package: str, **added: str) -> list[str]:
        shutil.copytree(SRC / package, tmp_path / package, ignore=shutil.ignore_patterns("*.pyc"))
        for module, text in added.items():
            path = tmp_path / package / (module.replace("__", "/") + ".py")
            path.write_text((path.read_text("utf-8") if path.exists() else "") + f"\n{text}\n")
        return Package(tmp_path, package).faults(LAYERS[package], LATE)

    return found


@pytest.mark.parametrize("package", LAYERS)
def test_each_component_imports_lower_ones_alone(package):
    faults = Package(SRC, package).faults(LAYERS[package], LATE)
    assert not faults, "\n".join(faults)


def test_the_lowest_components_of_the_core_stand_alone():
    imports = Package(SRC, "geodiag").imports
    assert not [i for i in imports if i.module == "geodiag.errors"]
    blocks = [i.target for i in imports if i.module == "geodiag.blocks"]
    assert set(blocks) == {"geodiag.errors"}


# A low component of each package, and a high one that it is made to import.
PLANTED = {
    "geodiag": ("blocks", "monitoring.monitor"),
    "geodiag_torch": ("ranks", "problem"),
    "geodiag_jax": ("pytree", "oracle"),
}
IMPORTS = {
    "at the top": "from {high} import x",
    "by its name": "import {high}",
    "of the module": "from {parent} import {last}",
    "for type checking": "if TYPE_CHECKING:\n    from {high} import x",
    "inside of a function": "def f():\n    from {high} import x",
    "inside of a method": "class C:\n    async def f(self):\n        import {high} as x",
    "by a call": "def f():\n    return importlib.import_module('{high}')",
    "by __import__": "x = __import__('{high}')",
}


@pytest.mark.parametrize("how", IMPORTS)
@pytest.mark.parametrize("package", PLANTED)
def test_a_planted_circle_is_named(package, how, faults):
    low, high = PLANTED[package]
    parent, _, last = f"{package}.{high}".rpartition(".")
    line = IMPORTS[how].format(high=f"{package}.{high}", parent=parent, last=last)
    found = faults(package, **{low: line})
    component = high.partition(".")[0]
    upward = f"{package}.{low} imports {package}.{high}"
    upward += f": the component {component!r} is not below {low!r}"
    assert upward in found
    for kind in ("modules", "components"):
        (circle,) = (fault for fault in found if fault.startswith(f"a circle of {kind}: "))
        assert low in circle
        assert component in circle
    late = [fault for fault in found if "inside of f()" in fault]
    assert bool(late) == ("def f" in line)


@pytest.mark.parametrize("package", LAYERS)
def test_a_circle_within_a_component_is_named(package, faults):
    component = "optimizers"
    a, b = (f"{package}.{component}.planted_{x}" for x in "ab")
    found = faults(
        package, optimizers__planted_a=f"import {b}", optimizers__planted_b=f"import {a}"
    )
    (circle,) = found
    assert circle.startswith("a circle of modules: ")
    assert {a, b} <= set(circle.removeprefix("a circle of modules: ").split(" → "))


@pytest.mark.parametrize("package", LAYERS)
def test_an_import_of_the_package_itself_is_named(package, faults):
    lowest = LAYERS[package][1]
    module = f"{package}.{lowest}"
    found = faults(package, **({lowest: f"import {package}"}))
    assert (
        f"{module} imports {package}.__init__: the component '__init__' is not below {lowest!r}"
        in found
    )


@pytest.mark.parametrize("package", LAYERS)
def test_a_component_in_no_layer_is_named(package, faults):
    assert faults(package, added="x = 1") == ["the component 'added' is in no layer"]
