"""The executed pages of the site: each runs whole, in a kernel of its own (nbclient)."""

from __future__ import annotations

import re
import sys
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if path.read_text("utf-8").startswith("---\nexecute: true\n---\n")
]


@pytest.fixture(scope="module")
def hooks():
    spec = util.spec_from_file_location("site_hooks", ROOT / "docs/site/hooks.py")
    module = util.module_from_spec(spec)
    sys.modules["site_hooks"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["site_hooks"]


def test_there_are_three_tutorials_and_a_gallery():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"first_hour", "gallery", "jax_optax", "transformer"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_page_runs(hooks, path, tmp_path):
    """Every cell, and each page draws; whatever a cell shows is rendered."""
    for needed in ("nbclient", "ipykernel", "torch", "jax", "optax", "sklearn", "matplotlib"):
        pytest.importorskip(needed)
    markdown = path.read_text("utf-8").split("---\n", 2)[2]
    notebook = hooks.executed(markdown, tmp_path)
    text, pictures = hooks.rendered(notebook, path.stem)
    assert len(pictures) >= 1
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    assert all(f"({name})" in text for name in pictures)
    assert not re.search(r"Traceback|Error\b", text)


def test_a_page_is_split_at_its_python_blocks(hooks):
    page = "# A\n\n```python\nx = 1\n```\ntext\n\n```text\nno code\n```\n```python\ny\n```\n"
    kinds = hooks.cells(page)
    assert [x for kind, x in kinds if kind == "code"] == ["x = 1\n", "y\n"]
    assert "no code" in kinds[2][1]


def test_outputs_are_rendered(hooks):
    def output(kind, **parts):
        class Output(dict):
            __getattr__ = dict.__getitem__

        return Output(output_type=kind, **parts)

    cell = SimpleNamespace(
        cell_type="code",
        source="show()",
        outputs=[
            output("stream", name="stdout", text="a 1\ra 2\n"),
            output("display_data", data={"image/png": "iVBORw=="}),
            output("execute_result", data={"text/html": "<b>x</b>\n", "text/plain": "x"}),
            output("execute_result", data={"text/plain": "plain"}),
        ],
    )
    text, pictures = hooks.rendered(SimpleNamespace(cells=[cell]), "page")
    assert pictures == {"page-0.png": b"\x89PNG"}
    assert "a 2" in text
    assert "a 1" not in text
    for shown in ("show()", "(page-0.png)", "<b>x</b>", "```text\nplain\n```"):
        assert shown in text


def test_references_in_docstrings_become_links(hooks):
    found = hooks.on_page_content("see :func:<code>geodiag.sharpness</code>.", None, None, None)
    assert 'identifier="geodiag.sharpness"' in found
    assert ":func:" not in found


def test_a_page_that_would_fetch_something_is_refused(hooks):
    exceptions = pytest.importorskip("mkdocs.exceptions")
    page = SimpleNamespace(url="api/runs.html")
    own = hooks.on_post_page(f'<script src="{hooks.SHIM}"></script>', page, None)
    assert own == '<script src="../javascripts/worker.js"></script>'
    for tag in ('<img src="https://a.b/c.png">', '<link rel="stylesheet" href="//a.b/c.css">'):
        with pytest.raises(exceptions.PluginError, match="fetches"):
            hooks.on_post_page(tag, page, None)
