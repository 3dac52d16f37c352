"""Files stay short enough to read at one sitting."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 350
FILES = sorted(p for folder in ("src", "tests") for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LIMIT


def test_every_package_is_marked_as_typed():
    packages = sorted(p.parent.name for p in (ROOT / "src").glob("*/__init__.py"))
    assert packages == ["geodiag", "geodiag_jax", "geodiag_torch"]
    for package in packages:
        assert (ROOT / "src" / package / "py.typed").is_file()
