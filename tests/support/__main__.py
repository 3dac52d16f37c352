"""``python -m tests.support [torch|jax] [--cells FILE]``: measure, and rewrite docs/support.md.

``python -m tests.support situations`` measures the situations alone, and rewrites their section.
``--cells``: what was measured is kept there, as lines of JSON, and not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tests.conftest  # noqa: F401  # JAX in float64, and quick to compile
from tests.support import situations
from tests.support.cells import Outcome
from tests.support.matrix import CASES, Key, bound_of, cell, keys
from tests.support.page import PAGE, with_situations, write


def main() -> None:
    """Fill the matrix and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.support", description=__doc__)
    parser.add_argument("frameworks", nargs="*", default=list(CASES))
    parser.add_argument("--cells", type=Path)
    options = parser.parse_args()
    section = situations.section({key: situations.cell(key) for key in situations.every()})
    if options.frameworks == ["situations"]:
        PAGE.write_text(with_situations(PAGE.read_text("utf-8"), section), encoding="utf-8")
        return
    known = _read(options.cells)
    for framework in options.frameworks:
        for key in keys(framework):
            if key in known:
                continue
            known[key] = found = cell(key)
            fault = found.fault(bound_of(key))
            print(*key, found.kind, f"{found.top:.1e} {found.signs:.1e}", fault or "", sep=" | ",
                  flush=True)  # fmt: skip
            if options.cells:
                with options.cells.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, found.as_json()]) + "\n")
    if all(key in known for framework in CASES for key in keys(framework)):
        PAGE.write_text(write(known, section), encoding="utf-8")
        print(f"wrote {PAGE}")


def _read(path: Path | None) -> dict[Key, Outcome]:
    if path is None or not path.exists():
        return {}
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {tuple(key): Outcome(**found) for key, found in lines}


if __name__ == "__main__":
    main()
