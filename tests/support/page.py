"""The page docs/support.md: from measured cells to tables, and back to what they say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.support.cells import BOUNDS, BY_DIFFERENCES, DIFFERENCES, ERROR, TIMES, WORKS, Outcome
from tests.support.matrix import CASES, ENGINES, PRECISIONS, Key, bound_of

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX"}
MARKS = {WORKS: "", BY_DIFFERENCES: "≈ ", ERROR: "error"}
HEAD = """# What is supported, measured

Every architecture with every engine in every precision: λ_max by `geodiag.sharpness`, and ⟨d, Hd⟩
along a direction of signs by `geodiag.directional_smoothness`. The truth is the same model in
float64, by differences of its first-order gradients, without geodiag and without a second
derivative. `python -m tests.support` measures all of it and writes this page; the test suite
measures a part at each run, and all of it with its slow tests.

A number is the larger of the two relative errors (the second against Σ|d_i (Hd)_i|, since its sum
cancels); no mark: the engine asked for works; ≈: it works by finite differences of gradients;
error: a `GeodiagError` says why not, in the footnote. Models have 100 to 1,000 parameters, and run
on a CPU.

## Stated errors

| precision | bound | largest measured | where | by finite differences: bound | largest measured |
|---|---|---|---|---|---|
"""
BELOW = """
In fewer than 32 bits, whether by the parameters' dtype, by autocast, around the model or inside of
it, or by casts in the loss, `result.notes` tells how far rounding moves the value: by one product
more, with the parameters moved by half a relative spacing and the direction rescaled, so that
nothing rounds as before, and at least by one spacing. An error of up to {times} times what is noted
counts as stated. A value that met its tolerance, and not within that, has the status `PRECISION`.
Finite differences choose their step, compare it with half of it, and note what is more than the
tolerance; they are refused below 32 bits.

Sums over batches, and all vectors of a search, are in float32 or better, also inside of autocast. A
part of a float64 model that computes in float32 (softmax, norms and the loss of Hugging Face
models) makes it a float32 measurement. What a device does inside of one operation (TF32) cannot be
seen. In float16, numbers below 6e-8 vanish, as gradients of a loss that averages over very many
terms can. In PyTorch a note tells where those of the loss scaled by 1,024 are others; JAX does not
look. Scale such a loss inside of `loss_fn`, as a GradScaler does, and divide S by the same factor;
or measure in bfloat16 or float32.

## A model of 124 million parameters

`examples/gpt2.py` builds GPT-2 small from its configuration (Hugging Face, random weights, nothing
is downloaded) and measures all of its 124,439,808 parameters in ℓ∞, in 15 lines:

    pip install -c constraints.txt torch==2.13.0
    pip install -c constraints.txt -e ".[torch]" transformers
    python examples/gpt2.py

From a new environment of this kind it took 119 s with one thread, on a machine of two cores that
was busy with other work (load 1 to 2), and 7.9 GiB at the peak: 14 Hessian-vector products of 64
tokens.

## Limits

- Custom functions with a wrong second derivative are found by the cross-check in float32 and
  float64; for a model in 16 bits by that of a copy in float32. Where none can be made, a note says
  that nothing was checked.
- A module that was compiled as a whole is measured through the original; one with compiled parts by
  finite differences, and `result.notes` says so.
- Rows of an embedding that are padding stay where they are, as in training.
"""


def write(known: Mapping[Key, Outcome], situations: str) -> str:
    """The page's text; ``situations``: its section of that name."""
    rows = [_summary(known, precision) for precision in dict.fromkeys(sum(PRECISIONS.values(), ()))]
    text = HEAD + "\n".join(rows) + "\n" + BELOW.format(times=TIMES) + situations
    notes: list[str] = []
    for framework, title in FRAMEWORKS.items():
        for precision in PRECISIONS[framework]:
            engines = ENGINES[framework]
            text += f"\n## {title}, {precision}\n\n| architecture | {' | '.join(engines)} |\n"
            text += "|---" * (1 + len(engines)) + "|\n"
            for case in CASES[framework]:
                cells = [known[framework, case, precision, engine] for engine in engines]
                text += f"| {case} | {' | '.join(_shown(c, notes) for c in cells)} |\n"
    lines = [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return text + "\n## Footnotes\n\n" + "\n".join(lines) + "\n"


def with_situations(text: str, section: str) -> str:
    """A page with its section on situations replaced."""
    head, _, rest = text.partition("\n## Situations\n")
    following = rest.partition("\n## ")[2] if rest else head.partition("\n## PyTorch, ")[2]
    if not rest:
        head, following = head.partition("\n## PyTorch, ")[0], "PyTorch, " + following
    return head + section + "\n## " + following


def situations_of(text: str) -> str:
    """The section on situations of a page."""
    return "\n## Situations\n" + text.partition("\n## Situations\n")[2].partition("\n## ")[0]


def _shown(outcome: Outcome, notes: list[str]) -> str:
    number = "" if outcome.kind == ERROR else f"{max(outcome.top, outcome.signs):.0e}"
    if outcome.said and outcome.said not in notes:
        notes.append(outcome.said)
    mark = f" [{notes.index(outcome.said) + 1}]" if outcome.said else ""
    return f"{MARKS[outcome.kind]}{number}{mark}"


def _summary(known: Mapping[Key, Outcome], precision: str) -> str:
    base = precision.removeprefix("autocast ")

    def largest(kind: str) -> tuple[str, str]:
        found = [
            (max(outcome.top, outcome.signs), f"{key[1]}, {key[3]}")
            for key, outcome in known.items()
            if key[2] == precision and bound_of(key) == base and outcome.kind == kind
        ]
        error, where = max(found, default=(0.0, "–"))
        return (f"{error:.0e}" if found else "refused"), where

    (exact, where), (rough, _) = largest(WORKS), largest(BY_DIFFERENCES)
    noted = "" if base in DIFFERENCES else f", or {TIMES}× noted"
    difference = f"{DIFFERENCES[base]:.0e}" if base in DIFFERENCES else "–"
    bound = f"{BOUNDS[base]:.0e}{noted}"
    return f"| {precision} | {bound} | {exact} | {where} | {difference} | {rough} |"


def read(text: str) -> dict[Key, tuple[str, str]]:
    """What a page says of each cell: its kind, and its footnote."""
    body, _, foot = text.partition("\n## Footnotes\n")
    notes = dict(re.findall(r"^(\d+)\. (.*)$", foot, re.MULTILINE))
    found: dict[Key, tuple[str, str]] = {}
    for framework, title in FRAMEWORKS.items():
        for section in re.split(r"\n## ", body):
            heading, _, table = section.partition("\n")
            if not heading.startswith(f"{title}, "):
                continue
            head, _, *rows = [_cells(line) for line in table.splitlines() if line.startswith("|")]
            for case, *cells in rows:
                for engine, cell in zip(head[1:], cells, strict=True):
                    number = re.search(r"\[(\d+)\]", cell)
                    kind = ERROR if "error" in cell else BY_DIFFERENCES if "≈" in cell else WORKS
                    note = notes[number.group(1)] if number else ""
                    found[framework, case, heading.removeprefix(f"{title}, "), engine] = kind, note
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
