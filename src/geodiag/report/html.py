"""The HTML report: a figure and a table of runs in one file, without a network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from geodiag.errors import printable
from geodiag.records import Record

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }}
{dark}svg {{ width: 100%; height: auto; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 12px; white-space: nowrap; }}
th, td {{ border-bottom: 1px solid #ccc; padding: 0.2em 0.8em; text-align: left; }}
</style>
</head>
<body>
{svg}
<h2>Last record</h2>
<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
</body>
</html>
"""

DARK = "body { background: #14171c; color: #e6e6e6; }\n"


def page(svg: str, runs: Mapping[str, Sequence[Record]], dark: bool = False) -> str:
    """One HTML file with a figure (SVG or HTML) and each run's last record; it fetches nothing."""
    last = {printable(label) or "run": run[-1].to_dict() for label, run in runs.items()}
    names = dict.fromkeys(name for row in last.values() for name in row)  # in their order
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in ("run", *names))
    body = "".join(
        f"<tr><td>{html.escape(label)}</td>"
        + "".join(f"<td>{html.escape(_cell(row.get(name, '')))}</td>" for name in names)
        + "</tr>"
        for label, row in last.items()
    )
    title = html.escape(printable(", ".join(label for label in runs if label)) or "geodiag")
    return PAGE.format(
        dark=DARK if dark else "",
        title=title,
        svg=svg[max(0, svg.find("<svg")) :] if svg.startswith("<?xml") else svg,
        head=head,
        body=body,
    )


def _cell(x: Any) -> str:
    if isinstance(x, float):
        return f"{x:.6g}" if x == x else ""
    return printable(str(x))
