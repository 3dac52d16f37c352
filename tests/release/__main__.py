"""Build a release, and try it in clean environments, with each extra alone.

    python -m tests.release                          the core and every extra, oldest and newest
    python -m tests.release core jax --newest        some of them, the newest versions alone
    python -m tests.release core --python python3.12 python3.13
    python -m tests.release torch -- -c constraints.txt    options of pip after the dashes

Oldest are the lower bounds that pyproject.toml states for the core and the extra, on the oldest
Python alone, for they have no builds for later ones. It needs the package ``build`` and an index.
Without ``-c``, pip may choose a build of PyTorch with several GB of CUDA packages.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.release.checks import CHECKS

ROOT = Path(__file__).parents[2]
CHECK = Path(__file__).with_name("checks.py")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OLDEST = re.search(r"\d+\.\d+", PROJECT["requires-python"])[0]  # type: ignore[index]


def lower_bounds(extra: str) -> list[str]:
    """The core's requirements and those of an extra, each at its lower bound: ``numpy==1.26``."""
    listed = PROJECT["dependencies"] + (PROJECT["optional-dependencies"][extra] if extra else [])
    return [each.replace(">=", "==") for each in listed]


def main() -> int:
    """Try what the command line names. Returns 1 if anything failed."""
    parser = argparse.ArgumentParser(description="Build a release and try it.")
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help="core, or an extra (all)")
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="PYTHON")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--oldest", action="store_true", help="the lower bounds alone")
    which.add_argument("--newest", action="store_true", help="the newest versions alone")
    own, pip = sys.argv[1:], list[str]()
    if "--" in own:
        own, pip = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    extras = ["" if x == "core" else x for x in arguments.extras] or list(CHECKS)
    unknown = set(extras) - set(CHECKS)
    if unknown:
        parser.error(f"no such extra: {', '.join(sorted(unknown))}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        print(f"{wheel.name}, from the sdist")
        for python in arguments.python:
            version = said(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
            for extra in extras:
                for oldest in (True, False):
                    wanted = not arguments.newest if oldest else not arguments.oldest
                    if wanted and not (oldest and version != OLDEST):
                        pins = lower_bounds(extra) if oldest else []
                        row = f"{version:5} {extra or 'core':9} {'oldest' if oldest else 'newest'}"
                        found, failure = tried(python, wheel, extra, [*pins, *pip])
                        failed += bool(failure)
                        print(f"{row}  {'FAILED' if failure else found}{failure}", flush=True)
    return int(failed > 0)


def build(folder: Path) -> Path:
    """The wheel that is built from the sdist."""
    said(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    return wheel


def tried(python: str, wheel: Path, extra: str, options: list[str]) -> tuple[str, str]:
    """What a new environment of this Python with this extra alone says, and how it failed."""
    with tempfile.TemporaryDirectory() as folder:
        target = f"{wheel}[{extra}]" if extra else str(wheel)
        try:
            said(python, "-m", "venv", folder)
            inside = str(Path(folder) / "bin" / "python")
            said(inside, "-m", "pip", "install", "--quiet", target, *options)
            said(inside, "-m", "pip", "check")
            return said(inside, str(CHECK), extra), ""
        except subprocess.CalledProcessError as e:
            return "", f"\n{e.stderr or e.stdout}"


def said(*command: str) -> str:
    """What a command printed last."""
    # A Python path of the caller's would let modules in that an installation does not have.
    env = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path("/"), env=env
    )
    return (done.stdout.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    sys.exit(main())
