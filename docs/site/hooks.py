"""Hooks of the documentation's build: pages are executed, and references in docstrings are links.

A page with ``execute: true`` in its first lines is a notebook: its Python blocks run in their
order, and what a cell prints, shows or draws stands below it. The notebook itself is on the site
too. A block that fails fails the build.
"""

from __future__ import annotations

import base64
import html
import os
import re
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:func|class|meth|attr|mod|data|exc):<code>~?([\w.]+)</code>")
TIMEOUT = 300  # seconds of a cell
ROOT = Path(__file__).parents[2]
# Material fetches it from a server, without which a page on the disk could not be searched.
SHIM, OWN_SHIM = "https://unpkg.com/iframe-worker/shim", "javascripts/worker.js"
FETCHED = re.compile(r"""<(?:script|link|img|iframe)[^>]* (?:src|href)="(?:https?:)?//([^"]+)""")


def cells(markdown: str) -> list[tuple[str, str]]:
    """The text and the code of a page in their order: ("markdown" or "code", source)."""
    found, at = [], 0
    for block in FENCE.finditer(markdown):
        found += [("markdown", markdown[at : block.start()]), ("code", block.group(1))]
        at = block.end()
    return [*found, ("markdown", markdown[at:])]


def executed(markdown: str, folder: Path) -> Any:
    """The page as a notebook, run in ``folder``."""
    import nbformat
    from nbclient import NotebookClient

    new = nbformat.v4
    made = [
        new.new_code_cell(x.rstrip("\n")) if kind == "code" else new.new_markdown_cell(x.strip())
        for kind, x in cells(markdown)
        if x.strip()
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new.new_notebook(cells=made, metadata={"kernelspec": kernel})
    folder.mkdir(parents=True, exist_ok=True)
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(x for x in (str(ROOT / "src"), path) if x)
    try:
        client = NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": folder}})
        client.execute()
    finally:
        os.environ["PYTHONPATH"] = path
    return notebook


def rendered(notebook: Any, stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown with its outputs, and the pictures by their names."""
    texts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            texts.append(cell.source)
            continue
        texts.append(f"```python\n{cell.source}\n```")
        for output in _joined(cell.outputs):
            text = _output(output, f"{stem}-{len(pictures)}.png", pictures)
            if text:
                texts.append(f'<div class="output" markdown="1">\n\n{text}\n\n</div>')
    return "\n\n".join(texts), pictures


def _joined(outputs: list[Any]) -> list[Any]:
    """The outputs of a cell, with what was printed piece by piece in one."""
    found: list[Any] = []
    for each in outputs:
        stream = each.output_type == "stream"
        if stream and found and found[-1].get("name") == each.name:
            found[-1].text += each.text
        else:
            found.append(each)
    return found


def _output(output: Any, name: str, pictures: dict[str, bytes]) -> str:
    if output.output_type == "stream":
        return f"```text\n{_last_lines(output.text)}\n```"
    data = output.get("data", {})
    if "image/png" in data:
        pictures[name] = base64.b64decode(data["image/png"])
        return f"![Output of the cell above]({name})"
    if "text/html" in data:
        return re.sub(r"\s+", " ", data["text/html"])
    return f"```text\n{data.get('text/plain', '')}\n```"


def _last_lines(text: str) -> str:
    """What a terminal shows: of a line that was written over, the last version."""
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.rstrip().split("\n"))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Execute the page if it is a notebook, unless DOCS_EXECUTE=0, to look at the rest quickly."""
    if not page.meta.get("execute") or os.environ.get("DOCS_EXECUTE") == "0":
        return markdown
    import nbformat
    from mkdocs.structure.files import File

    stem = Path(page.file.src_uri).stem
    scratch = ROOT / "build" / "executed" / stem
    notebook = executed(markdown, scratch)
    text, pictures = rendered(notebook, stem)
    folder = Path(page.file.src_uri).parent.as_posix().removeprefix(".")
    made: dict[str, Any] = dict(pictures)
    made[f"{stem}.ipynb"] = nbformat.writes(notebook)
    for name, content in made.items():
        uri = f"{folder}/{name}".lstrip("/")
        files.append(File.generated(config, uri, content=content))
    title, _, rest = text.partition("\n")
    return f"{title}\n\n[This page as a notebook]({stem}.ipynb)\n{rest}"


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """References of docstrings, such as ``:func:`geodiag.sharpness```, become links."""

    def link(found: re.Match[str]) -> str:
        name = html.escape(found.group(1))
        shown = name if name.startswith("geodiag.") else name.rsplit(".", 1)[-1]
        return f'<autoref optional identifier="{name}"><code>{shown}</code></autoref>'

    return ROLE.sub(link, content)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """A page fetches nothing from elsewhere.

    Raises:
        PluginError: it would.
    """
    from mkdocs.exceptions import PluginError

    up = "../" * page.url.count("/")
    output = output.replace(SHIM, up + OWN_SHIM)
    # The canonical address is said, not fetched.
    elsewhere = FETCHED.findall(re.sub('<link rel="canonical"[^>]*>', "", output))
    if elsewhere:
        raise PluginError(f"{page.url} fetches {elsewhere}")
    return output
