"""The pages of the site: each public name has an entry, links lead somewhere, tables are right.

Only the last test needs mkdocs; `make docs` runs the tutorials, too.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import geodiag
from tests.isolation.test_documentation import exists
from tests.memory.test_bounds import table as vectors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md"))
API = "\n".join(p.read_text("utf-8") for p in sorted((DOCS / "api").glob("*.md")))
ENTRIES = set(re.findall(r"^::: ([\w.]+)", API, re.MULTILINE))
NAMED = ENTRIES | set(re.findall(r"^## (geodiag[\w.]+)", API, re.MULTILINE))
ANCHORS = re.compile(r"^\[\]\(\)\{#(geodiag[\w.]+)\}", re.MULTILINE)
NAMED |= set(ANCHORS.findall(API))
NAMED |= set(re.findall(r"^`(geodiag[\w.]+)` is ", API, re.MULTILINE))
LISTED = ("", ".norms", ".estimators", ".testing", ".records", ".sinks", ".envelopes")
PACKAGES = [*(f"geodiag{each}" for each in LISTED), "geodiag_torch", "geodiag_jax"]


def public():
    """Every public name, dotted. A module is covered by the entries of what is in it."""
    for package in PACKAGES:
        module = pytest.importorskip(package)
        for name in module.__all__:
            if not inspect.ismodule(getattr(module, name)):
                yield f"{package}.{name}", getattr(module, name)
    for name, x in vars(geodiag.errors).items():
        if inspect.isclass(x) and issubclass(x, (geodiag.GeodiagError, Warning)):
            yield f"geodiag.errors.{name}", x
    yield "geodiag_torch.callbacks.LightningMonitor", None
    yield "geodiag_torch.callbacks.HuggingFaceMonitor", None


def shown_as(name):
    """The other public name of what is public twice, such as geodiag.norms.Norm."""
    return f"geodiag.{name.rpartition('.')[2]}"


def test_every_public_name_has_an_entry():
    missing = [name for name, _ in public() if name not in NAMED and shown_as(name) not in NAMED]
    assert missing == []


def test_entries_exist():
    assert [name for name in sorted(ENTRIES) if not exists(name)] == []


def test_no_entry_is_a_module_where_something_else_has_its_name():
    """`geodiag.sharpness` is a function and a module: the entry must name the function."""
    named = [ROOT / "src" / name.replace(".", "/") for name, _ in public() if name in ENTRIES]
    assert [p for p in named if p.is_dir() or p.with_suffix(".py").exists()] == []


def test_each_name_has_one_entry():
    found = re.findall(r"^::: ([\w.]+)", API, re.MULTILINE)
    assert len(found) == len(set(found))


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8")))
    assert listed == {p.relative_to(DOCS).as_posix() for p in PAGES}


def prose(page):
    """A page without its code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """The anchors of a page's headings, as Markdown's toc makes them, and of its API entries."""
    text = prose(page)
    found = set(re.findall(r"^::: ([\w.]+)", text, re.MULTILINE)) | set(ANCHORS.findall(text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading)
        ascii_only = plain.encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_links_lead_somewhere(page):
    text = prose(page)
    made = {f"{p.stem}.ipynb" for p in PAGES}
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", text):
        leads = (page.parent / target).resolve() if target else page
        assert leads.exists() or target in made, target
        if target:
            assert DOCS in leads.parents, f"{target} is not on the site"
        if anchor and leads.suffix == ".md":
            assert anchor in anchors(leads), f"{target}#{anchor}"


class TestCost:
    """The bytes of docs/cost.md follow from the vectors that the tests of memory measure."""

    ROWS = ("`critical_lr`", "`realized_edge`", "warm", "cold", "lanczos")

    @staticmethod
    def rows():
        """The rows of both tables: N, ranks and what is stated."""
        whole, _, shards = (DOCS / "cost.md").read_text("utf-8").partition("| N | ranks |")
        for text, ranks in ((whole, None), (shards, 1)):
            for line in text.splitlines():
                row = [x.strip() for x in line.strip("|").split("|")]
                if re.fullmatch(r"\d+[MB]", row[0]):
                    size = int(row[0][:-1]) * {"M": 10**6, "B": 10**9}[row[0][-1]]
                    if ranks is None:
                        assert float(row[1]) == pytest.approx(4e-9 * size)
                    yield size, int(row[1]) if ranks else 1, row[2:]

    @staticmethod
    def count(what, size):
        """The vectors of the engine that is the default, at so many parameters."""
        small, huge = size <= 2**22, size >= 2**24
        rows = {
            "warm": ("every 5th warm `Ascent`", "huge" if huge else "small"),
            "lanczos": (("`Lanczos`, by default", "huge") if huge
                        else ("`Lanczos` (quadratic norms)", "all")),
            "cold": (("`Ascent` (spectral and other norms with them)", "small") if small
                     else ("`Ascent`", "huge" if huge else "large")),
        }  # fmt: skip
        return vectors()[rows.get(what, (what, "all"))]["graph"]

    def test_bytes(self):
        pytest.importorskip("torch")
        found = list(self.rows())
        assert len(found) >= 19
        for size, ranks, stated in found:
            for what, gigabytes in zip(self.ROWS, stated, strict=True):
                exact = self.count(what, size) * 4e-9 * size / ranks
                assert float(gigabytes) == pytest.approx(exact, rel=6e-3), (size, ranks, what)


def test_the_tests_read_what_is_there():
    assert len(ENTRIES) > 60
    assert "what-a-record-says" in anchors(DOCS / "monitor.md")


def test_the_site_is_built_strictly(tmp_path):
    """Without running its pages. Each class has its signature, and nothing is fetched."""
    for needed in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(needed)
    env = os.environ | {"DOCS_EXECUTE": "0", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    page = re.sub("<[^>]+>", "", (tmp_path / "api/runs.html").read_text("utf-8"))
    assert re.search(r"Monitor\(\s+model: Any,\s+norm: NormLike", page)
