"""The page docs/support.md: from measured cells to tables, and back."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "support.md"


def write(known):
    return ""
