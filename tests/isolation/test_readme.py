"""Every example in the README and in docs/ runs, each in an interpreter of its own."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

from tests.isolation.preloaded import Preloaded

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


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """``ran(code)``: what an example printed, and the folder that it ran in; each runs once.

    An interpreter that has one framework, which most of the examples begin with, runs all of it;
    making an optimizer in torch imports Dynamo.
    """
    numpy = "array_api_compat.numpy"
    interpreters = {
        "torch": Preloaded("torch", "torch._dynamo", numpy),
        "jax": Preloaded("jax", numpy),
    }

    @functools.cache
    def once(code: str) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp("example")
        name = "jax" if "jax" in code and "import torch" not in code else "torch"
        return interpreters[name].run(code, folder), folder  # an error where it warns

    yield once
    for interpreter in interpreters.values():
        interpreter.close()


@pytest.mark.parametrize("code", CASES)
def test_example_runs(ran, code):
    printed, _ = ran(code)
    stated = [float(number) for number in STATED.findall(code)]
    if stated:
        # Ascent on a given matrix stops when it improves by less than 1e-8; what is then left is
        # less than 1e-6 wherever a step at least removes a hundredth of the error.
        assert [float(x) for x in printed.split()] == pytest.approx(stated, rel=1e-6)


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
def test_twenty_lines_make_records_and_a_picture(ran, framework):
    (code,) = [c for _, c in examples(README) if f'geodiag.plot("{framework}.jsonl' in c]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    _, folder = ran(code)
    rows = [json.loads(x) for x in (folder / f"{framework}.jsonl").read_text().splitlines()[1:]]
    assert [row["step"] for row in rows] == list(range(0, 100, 10))
    assert all(row["sharpness"] > 0 and row["ratio"] > 0 for row in rows)
    assert all(row["threshold"] == pytest.approx(10.0) for row in rows)
    assert (folder / f"{framework}.png").read_bytes().startswith(b"\x89PNG")


def test_every_page_is_reached_from_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"({page.name})" in index


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
