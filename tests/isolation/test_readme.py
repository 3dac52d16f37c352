"""Every example in the README and in docs/ runs, each in a fresh interpreter."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.isolation.environment import run

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> list[tuple[int, str]]:
    """(line, code) of each fenced Python block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start()) + 2, m.group(1)) for m in FENCE.finditer(text)]


# A printed number that the example states: `print(float(...))  # 7: why`.
STATED = re.compile(r"^print\(float\(.*\)\)  # ([\d.]+)(?:$|:)", re.MULTILINE)

CASES = [
    pytest.param(code, id=f"{page.name}:{line}") for page in PAGES for line, code in examples(page)
]


@pytest.mark.parametrize("code", CASES)
def test_example_runs(code, tmp_path):
    done = run(sys.executable, "-W", "error", "-c", code, cwd=tmp_path)  # no warning either
    assert done.returncode == 0, done.stderr
    stated = [float(number) for number in STATED.findall(code)]
    if stated:
        # Ascent on a given matrix stops when it improves by less than 1e-8; what is then left is
        # less than 1e-6 wherever a step at least removes a hundredth of the error.
        assert [float(x) for x in done.stdout.split()] == pytest.approx(stated, rel=1e-6)


def test_readme_begins_with_the_two_commands():
    first = "\n".join(README.read_text(encoding="utf-8").splitlines()[:30])
    assert "make demo" in first
    assert "make test" in first


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_readme_shows_each_framework_in_a_few_lines(framework):
    shown = [code for _, code in examples(README) if f"import {framework}" in code]
    assert shown
    # Lines that say something: ten of them are enough to measure.
    assert min(sum(bool(line.strip()) for line in code.splitlines()) for code in shown) <= 10


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_twenty_lines_make_records_and_a_picture(framework, tmp_path):
    (code,) = [c for _, c in examples(README) if f'geodiag.plot("{framework}.jsonl' in c]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    done = run(sys.executable, "-W", "error", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(x) for x in (tmp_path / f"{framework}.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(0, 100, 10))
    assert all(row["sharpness"] > 0 and row["ratio"] > 0 for row in rows)
    assert all(row["threshold"] == pytest.approx(10.0) for row in rows)
    assert (tmp_path / f"{framework}.png").read_bytes().startswith(b"\x89PNG")


def test_every_page_is_reached_from_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"({page.name})" in index


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
