"""What a log says of a run before its records: the id, the norm, the optimizer, the model.

Plain JSON values. Of the command line there are the program's name and its arguments; of the
environment, the user and the machine there is nothing. What follows an option that sounds like a
secret, and passwords in URLs, are left out.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geodiag.errors import cut, one_line

DEEPEST, MOST, LONGEST = 4, 64, 1000  # levels, entries and characters that a header keeps
_SECRET = re.compile(r"(?i)(token|secret|passw|api.?key|credential)")
_IN_URL = re.compile(r"(?<=://)[^/\s]*@")  # a name and a password


@dataclass(frozen=True)
class Header:
    """The id of a run, and what is known of it.

    >>> Header("3f2a", {"norm": "L2()", "optimizer": {"name": "SGD", "lr": 0.1}}).label
    'SGD, L2()'
    """

    run: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What a plot calls the run: its label, if it has one; else optimizer and norm."""
        label, optimizer = self.values.get("label"), self.values.get("optimizer")
        name = optimizer.get("name") if isinstance(optimizer, Mapping) else None
        parts = [label] if label else [name, self.values.get("norm")]
        return ", ".join(x for x in parts if isinstance(x, str) and x) or self.run


def labels(headers: Iterable[Header]) -> list[str]:
    """A label for each, no two the same: with what their headers differ in, else with the id.

    >>> labels(Header(str(lr), {"label": "a", "optimizer": {"lr": lr}}) for lr in (0.1, 0.2))
    ['a, lr=0.1', 'a, lr=0.2']
    """
    known = list(headers)
    names = [header.label for header in known]
    for same in {name for name in names if names.count(name) > 1}:
        where = [i for i, name in enumerate(names) if name == same]
        told = [_told(known[i].values) for i in where]
        keys = [k for k in told[0] if any(k not in t or t[k] != told[0][k] for t in told)][:2]
        for i, found in zip(where, told, strict=True):
            names[i] = ", ".join([same, *(f"{k}={found[k]}" for k in keys if k in found)])
    return [
        f"{name} ({header.run})" if names.count(name) > 1 else name
        for name, header in zip(names, known, strict=True)
    ]


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    """What tells runs apart: numbers and texts of the optimizer and of the run."""
    optimizer = values.get("optimizer")
    found = dict(optimizer) if isinstance(optimizer, Mapping) else {}
    found |= {k: values[k] for k in ("seed", "model", "data", "norm") if k in values}
    return {k: cut(str(x), 40) for k, x in found.items() if isinstance(x, (int, float, str))}


def new_run() -> str:
    """An id for a run that no other has. No generator of random numbers is asked."""
    return uuid.uuid4().hex[:12]


def plain(x: Any, depth: int = 0) -> Any:
    """``x`` as JSON has it, of bounded size; other objects as their text."""
    if x is None or isinstance(x, (bool, int)):
        return x if isinstance(x, bool) or x is None or abs(x) < 2**63 else cut(str(x), LONGEST)
    if isinstance(x, float):
        return x if math.isfinite(x) else str(x)
    if isinstance(x, str):
        return cut(x, LONGEST)
    if depth < DEEPEST and isinstance(x, Mapping):
        return {str(k): plain(v, depth + 1) for k, v in list(x.items())[:MOST]}
    if depth < DEEPEST and isinstance(x, (list, tuple)):
        return [plain(v, depth + 1) for v in x[:MOST]]
    try:
        return cut(str(x), LONGEST)
    except Exception as e:
        return one_line(e)


def command(arguments: Sequence[str] | None = None) -> str:
    """The program's name and its arguments (default: those of this process).

    >>> command(["/home/me/train.py", "--lr=0.1", "--api-key", "s3cr3t"])
    'train.py --lr=0.1 --api-key …'
    """
    given = list(sys.argv if arguments is None else arguments)
    words = [Path(given[0]).name] if given else []
    hidden = False
    for word in given[1:]:
        option = word.startswith("-")
        if hidden and not option:
            word, hidden = "…", False
        elif _SECRET.search(word.partition("=")[0]):
            name, found, _ = word.partition("=")
            word, hidden = (f"{name}=…", False) if found else (word, option)
        else:
            hidden = False
        words.append(_IN_URL.sub("…@", word))
    return " ".join(word if word.endswith("…") else shlex.quote(word) for word in words)


def text_of(header: Header) -> str:
    """The values as strict JSON in ASCII, on one line."""
    return json.dumps(plain(header.values), allow_nan=False)
