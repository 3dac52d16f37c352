"""The wheel holds the three packages and nothing else, and works with the core's dependencies."""

from __future__ import annotations

import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.isolation.environment import run

ROOT = Path(__file__).parents[2]
PACKAGES = {"geodiag", "geodiag_torch", "geodiag_jax"}
CORE = ("numpy", "array-api-compat", "pluggy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    done = run(*pip, *offline, ROOT, cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("geodiag-*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel and the core's dependencies alone."""
    venv = tmp_path_factory.mktemp("bare") / "venv"
    assert run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent).returncode == 0
    site = next(venv.glob("[lL]ib/**/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    for name in CORE:
        for top in {file.parts[0] for file in metadata.files(name) or ()} - {"..", "__pycache__"}:
            site.joinpath(top).symlink_to(metadata.distribution(name).locate_file(top))
    return next(p for p in (venv / "bin" / "python", venv / "Scripts" / "python.exe") if p.exists())


def test_wheel_holds_the_packages_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    for package in PACKAGES:
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    assert [n for n in names if "test_" in n or "conftest" in n or n.endswith(".pyc")] == []
    assert any(n.endswith("dist-info/licenses/LICENSE") for n in names)


def test_core_dependencies_are_enough(bare, tmp_path):
    code = (
        "import geodiag, numpy as np; print(float(geodiag.sharpness(np.diag([3.0, 1.0]), 'linf')))"
    )
    done = run(bare, "-W", "error", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # The trace, for a non-negative diagonal matrix in ℓ∞; rounding of one sum.
    assert float(done.stdout) == pytest.approx(4.0, rel=1e-14)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_demo_without_extras_exits_with_2(bare, tmp_path, framework):
    code = "import sys; from geodiag.cli import main; sys.exit(main(sys.argv[1:]))"
    listed = run(bare, "-c", code, "norms", cwd=tmp_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    done = run(bare, "-c", code, "demo", "--framework", framework, cwd=tmp_path)
    assert done.returncode == 2
    assert f'pip install "geodiag[{framework},plot,demo]"' in done.stderr
    assert "Traceback" not in done.stderr
