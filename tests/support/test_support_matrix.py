"""The support matrix: a fixed part of it at each run, and all of it with the slow tests.

A cell must be within its stated bound (see tests.support.cells), or a GeodiagError, or say that it
is neither; the page docs/support.md must say the same.
"""

from __future__ import annotations

import re

import pytest

from geodiag_torch.state import module_tensors
from tests.support import situations
from tests.support.cells import BOUNDS, BY_DIFFERENCES, DIFFERENCES, ERROR, WORKS, Outcome
from tests.support.matrix import CASES, ENGINES, PRECISIONS, bound_of, cell, keys
from tests.support.page import PAGE, read, situations_of, with_situations, write

# torch: every architecture by "auto" and, in turn, one other engine; JAX compiles for seconds, and
# has tests of its own for each.
QUICK = [
    ("torch", case, "float64", engine)
    for i, case in enumerate(CASES["torch"])
    for engine in ("auto", [e for e in ENGINES["torch"] if e != "auto"][i % 3])
]
QUICK += [("torch", case, "autocast bfloat16", "auto") for case in CASES["torch"]]
QUICK += [
    ("torch", case, precision, engine)
    for case in ("MLP (tanh)", "torch.compile of a submodule", "Hugging Face Llama")
    for precision in ("float32", "float16")
    for engine in ENGINES["torch"]
]
QUICK += [
    ("jax", "nested dicts (Haiku's), tanh", precision, engine)
    for precision, engine in (
        ("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "finite-difference"),
    )
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_other_threads():
    """That earlier tests may have left: beside them nothing compiled is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_tensors, "other_threads", frozenset)
        yield


@pytest.fixture(scope="module")
def page():
    return read(PAGE.read_text("utf-8"))


def check(key, page):
    found = cell(key)
    assert found.fault(bound_of(key)) is None
    kind, said = page[key]
    assert found.kind == kind
    assert reason_left_out(key, found.said) == reason_left_out(key, said)


def reason_left_out(key, said):
    """A compiled module has two reasons to be without second derivatives, and which of them comes
    first depends on what torch has compiled before in this process."""
    return said.split("finite differences:")[0] if "torch.compile" in key[1] else said


# What torch.compile itself warns of, where warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("key", QUICK, ids=" | ".join)
def test_a_cell_is_what_the_page_says(key, page):
    check(key, page)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize(
    ("framework", "case"), [(f, case) for f, cases in CASES.items() for case in cases]
)
def test_all_cells_are_what_the_page_says(framework, case, page):
    for key in keys(framework):
        if key[1] == case:
            check(key, page)


def test_the_page_lists_the_present_cells(page):
    assert list(page) == [
        key for f in CASES for p in PRECISIONS[f] for key in keys(f) if key[2] == p
    ]


def test_a_page_is_read_as_it_was_written():
    outcomes = [
        Outcome(WORKS, 1e-9, 2e-10), Outcome(WORKS, 0.01, 0.0, 0.02, "a note (1, 2)"),
        Outcome(BY_DIFFERENCES, 1e-6, 1e-5, 0.0, "a reason"), Outcome(ERROR, said="E: why | not"),
    ]  # fmt: skip
    every = [key for framework in CASES for key in keys(framework)]
    known = {key: outcomes[i % 3] for i, key in enumerate(every)}
    text = write(known, "")
    assert read(text) == {key: (found.kind, found.said) for key, found in known.items()}


def rows_of(section, column):
    """The title of each row with its cell in a column, and with the note that this refers to."""
    notes = dict(re.findall(r"^- \((\d+)\) (.*)$", section, re.M))
    rows = re.findall(r"^\| (.*) \| (.*) \| (.*) \|$", section, re.M)
    return {
        row[0]: re.sub(r"\((\d+)\)", lambda at: notes[at[1]], row[column])
        for row in rows
        if row[column] != "–"
    }


@pytest.mark.parametrize(
    ("framework", "column"), [("torch", 1), pytest.param("jax", 2, marks=pytest.mark.slow)]
)
def test_situations_are_as_the_page_says(framework, column):
    measured = {key: situations.cell(key) for key in situations.every() if key[0] == framework}
    for key, found in measured.items():
        allowed = DIFFERENCES if found.kind == BY_DIFFERENCES else BOUNDS
        right = found.kind in (ERROR, situations.SAYS) or found.top <= allowed["float64"]
        # A record's S is that of one power step or of a search, to its own tolerance.
        assert right or (found.kind == situations.FOLLOWS and found.top < 2e-3), (key, found)
    said = rows_of(situations_of(PAGE.read_text("utf-8")), column)
    assert said == rows_of(situations.section(measured), column)


def test_the_section_on_situations_is_replaced():
    text = PAGE.read_text("utf-8")
    assert with_situations(text, situations_of(text)) == text
    assert situations_of(with_situations(text, "\n## Situations\nnew\n")).strip().endswith("new")


@pytest.mark.parametrize(
    ("outcome", "precision", "wrong"),
    [
        (Outcome(WORKS, 2e-5, 0.0), "float64", True),
        (Outcome(WORKS, 2e-5, 0.0), "float32", False),
        (Outcome(WORKS, 0.0, 1e-3), "float32", True),
        (Outcome(WORKS, 0.05, 0.0, 0.01), "bfloat16", True),
        (Outcome(WORKS, 0.05, 0.0, 0.02), "bfloat16", False),
        (Outcome(WORKS, float("nan"), 0.0), "bfloat16", True),
        (Outcome(BY_DIFFERENCES, 5e-4, 0.0), "float32", False),
        (Outcome(ERROR, said="EngineError: refused"), "float16", False),
    ],
)
def test_what_counts_as_wrong(outcome, precision, wrong):
    assert (outcome.fault(precision) is not None) == wrong
