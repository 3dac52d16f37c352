"""What a release holds and says of itself, and that its checks pass where they can run."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from email import message_from_string
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.release.__main__ import PROJECT, lower_bounds
from tests.release.checks import CHECKS

ROOT = Path(__file__).parents[2]
CACHES = {"__pycache__", ".pytest_cache", ".hypothesis"}


def built(source: Path, folder: Path, target: str) -> Path:
    """The file that the backend makes of a source tree, with nothing fetched."""
    pytest.importorskip("hatch_vcs")
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("sdist")
    path = built(ROOT, folder, "sdist")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    (root,) = (p for p in folder.iterdir() if p.is_dir())
    info = message_from_string((root / "PKG-INFO").read_text("utf-8"))
    return SimpleNamespace(path=path, root=root, info=info)


def test_the_sdist_holds_the_sources_their_tests_and_docs(sdist):
    for folder in ("src", "tests", "docs", "examples", "benchmarks"):
        own = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*.py")}
        own = {p for p in own if not CACHES & set(p.parts)}
        assert own <= {p.relative_to(sdist.root) for p in sdist.root.rglob("*.py")}
    tops = {p.name for p in sdist.root.iterdir()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "Makefile"} <= tops
    assert not tops & {".git", ".venv", "build", "dist", "shared"}
    assert not [p for p in sdist.root.rglob("*") if p.suffix == ".pyc" or CACHES & set(p.parts)]


@pytest.mark.slow
def test_a_wheel_of_the_sdist_has_its_version_without_a_clone(sdist, tmp_path):
    assert built(sdist.root, tmp_path, "wheel").name.split("-")[1] == sdist.info["Version"]


@pytest.mark.parametrize(
    ("tags", "version"),
    [
        ([], r"0\.1\.dev1\+g\w+"),  # a clone without tags
        (["v1.2.0"], r"1\.2\.1\.dev1\+g\w+"),
    ],
    ids=["no tag", "after a tag"],
)
@pytest.mark.slow
def test_the_version_is_of_the_last_tag(tags, version, tmp_path):
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x.invalid"]
    work = tmp_path / "clone"
    work.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (work / name).write_bytes((ROOT / name).read_bytes())
    for name in ("geodiag", "geodiag_torch", "geodiag_jax"):
        (work / "src" / name).mkdir(parents=True)
        (work / "src" / name / "__init__.py").touch()
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], cwd=work, check=True)
    for tag in tags:
        subprocess.run([*git, "tag", tag], cwd=work, check=True)
        subprocess.run([*git, "commit", "-qm", "b", "--allow-empty"], cwd=work, check=True)
    name = built(work, tmp_path, "wheel").name
    assert re.fullmatch(version, name.split("-")[1])


def test_the_metadata_say_what_pip_and_people_ask_for(sdist):
    info = sdist.info
    assert info["Name"] == "geodiag"
    assert info["License-Expression"] == "MIT"
    assert info["Requires-Python"] == PROJECT["requires-python"]
    assert set(CHECKS) - {""} <= set(info.get_all("Provides-Extra"))
    pythons = {x.rpartition(" ")[2] for x in info.get_all("Classifier") if ":: Python ::" in x}
    assert pythons == {"3.11", "3.12", "3.13"}
    assert "edge of stability" in info.get_payload()  # the README


@pytest.mark.parametrize("extra", CHECKS, ids=lambda x: x or "core")
def test_every_requirement_of_a_user_has_a_lower_bound_alone(extra):
    for pin in lower_bounds(extra):
        assert re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+", pin)


def test_the_citation_names_the_software_and_what_it_rests_on():
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(found)
    assert found["license"] == PROJECT["license"]
    papers = {each["value"].removeprefix("arXiv:") for each in found["identifiers"]}
    cited = re.findall(r"arXiv (\d{4}\.\d{5})", (ROOT / "README.md").read_text("utf-8"))
    assert papers == set(cited)


def test_the_changelog_has_a_place_for_what_is_not_released():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0].startswith("[Unreleased]")


NEEDS = {"plot": "matplotlib", "watch": "rich", "progress": "tqdm", "demo": "sklearn",
         "html": "plotly", "sinks": "tensorboard wandb mlflow", "jax": "jax optax"}  # fmt: skip
LIGHT = ("", "watch", "progress")
EACH = [
    pytest.param(x, id=x or "core", marks=() if x in LIGHT else pytest.mark.slow) for x in CHECKS
]


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")
@pytest.mark.parametrize("extra", EACH)
def test_the_check_of_each_extra_passes_here(extra, tmp_path):
    for package in NEEDS.get(extra, extra).split():  # of the core there is none
        pytest.importorskip(package)
    CHECKS[extra](tmp_path)


def test_each_check_can_fail():
    checks = import_module("tests.release.checks")
    with pytest.raises(AssertionError):
        checks.near(4.001, 4.0)
