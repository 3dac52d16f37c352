"""Fresh interpreters, and environments of their own, for what must hold outside of this process."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def variables() -> dict[str, str]:
    """Environment variables for a process of its own."""
    # A Python path of the caller's would let modules in that an installation does not have.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    fixed = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": "utf-8"}
    return {**inherited, **fixed}


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output as text. Never in the repository's own directory."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**variables(), **env},
        capture_output=True,
        encoding="utf-8",
        timeout=900,
        check=False,
    )


class Environment:
    """A virtual environment that also sees what is installed in the running one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        made = run(sys.executable, "-m", "venv", "--without-pip", path, cwd=path.parent)
        assert made.returncode == 0, made.stderr
        self.python = path / ("Scripts" if os.name == "nt" else "bin") / "python"
        # addsitedir, unlike a bare path line, also follows the .pth files found there: an editable
        # geodiag is one.
        outer = sysconfig.get_path("purelib")
        self.site.joinpath("outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")

    @property
    def site(self) -> Path:
        return next(self.path.glob("[lL]ib/**/site-packages"))

    def install(self, *projects: Path) -> None:
        """Install projects from their folders, with nothing fetched."""
        pip = [sys.executable, "-m", "pip", "--python", self.python, "--quiet"]
        offline = ["--no-deps", "--no-build-isolation", "--no-index"]
        done = run(*pip, "install", *offline, *projects, cwd=self.path)
        assert done.returncode == 0, done.stderr

    def run(self, code: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in this environment."""
        return run(self.python, *options, "-c", code, cwd=self.path, **env)

    def geodiag(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the ``geodiag`` command in this environment."""
        code = "import sys; from geodiag.cli import main; sys.exit(main(sys.argv[1:]))"
        return run(self.python, "-c", code, *arguments, cwd=self.path)
