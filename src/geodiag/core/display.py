"""How results show themselves in a notebook: small tables, in which every text is only text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from geodiag.errors import cut, printable

LONGEST = 300  # characters of a cell
# As html.escape has them, which takes long to import.
ESCAPES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#x27;"))
KEY = ' style="text-align: left"'


def number(x: Any) -> str:
    """A value as people read it; "" where it is NaN or None."""
    if x is None or x != x:
        return ""
    return f"{float(x):.6g}" if isinstance(x, float) else printable(cut(str(x), LONGEST))


def titled(name: str, x: float) -> str:
    """A name and a number, or that it is not known."""
    return f"{name} {number(x)}" if x == x else f"{name} not known"


def pairs(title: str, rows: Iterable[tuple[str, Any]], notes: Iterable[str] = ()) -> str:
    """A table of names and values as HTML; what is not known is left out."""
    shown = [(name, number(x)) for name, x in rows]
    body = "".join(
        f"<tr><th{KEY}>{_safe(name)}</th><td{KEY}>{_safe(x)}</td></tr>" for name, x in shown if x
    )
    return _table(title, "", body, notes)


def columns(
    title: str, head: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
) -> str:
    """A table with a heading for each column as HTML."""
    top = "".join(f"<th{KEY}>{_safe(x)}</th>" for x in head)
    body = "".join(
        "<tr>" + "".join(f"<td{KEY}>{_safe(x)}</td>" for x in row) + "</tr>" for row in rows
    )
    return _table(title, f"<thead><tr>{top}</tr></thead>", body, notes)


def _table(title: str, head: str, body: str, notes: Iterable[str]) -> str:
    said = "".join(f"<div>{_safe(note)}</div>" for note in notes if note)
    caption = f"<caption{KEY}><b>{_safe(title)}</b></caption>"
    return f"<div><table>{caption}{head}<tbody>{body}</tbody></table>{said}</div>"


def _safe(text: str) -> str:
    text = printable(cut(text, LONGEST))
    for letter, escape in ESCAPES:
        text = text.replace(letter, escape)
    return text
