"""The fuzz suite in the small: a fixed number of cases of every target, the same each time.

``python -m tests.fuzz --cases 20000`` runs it in the large, ``python -m tests.fuzz.reader`` the
readers guided by coverage.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import reader
from tests.fuzz.case import Case
from tests.fuzz.runner import NO_CHECKS, explore, run_one
from tests.fuzz.targets import TARGETS

CASES, FEWEST = 800, 10  # of all targets together, and of each
COMPILED = {"networks (jax)": 3, "runs (jax)": 2, "untouched (jax)": 2}  # each for seconds
SHARES = sum(share for _, share in TARGETS.values())

QUIET = {"database": None, "deadline": None, "suppress_health_check": NO_CHECKS}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Some cases write to relative paths."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_a_geodiag_error_or_a_right_answer(name):
    target, share = TARGETS[name]

    @settings(
        derandomize=True,
        max_examples=COMPILED.get(name) or max(FEWEST, round(CASES * share / SHARES)),
        **QUIET,
    )
    @given(st.data())
    def cases(data):
        run_one(target, data.draw)

    cases()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_the_same_for_two_thousand_others(name):
    target, share = TARGETS[name]
    findings = {}
    explore(name, target, max(20, round(2000 * share / SHARES)), 12345, findings)
    assert not findings


def test_a_finding_is_found():
    """The runner counts an exception, a warning and a wrong answer, each once, and goes on."""

    def target(case):
        kind = case.draw(st.sampled_from(("fine", "crash", "warns", "wrong")))
        if kind == "crash":
            case.call("int", int, "x")
        if kind == "warns":
            case.call("warn", __import__("warnings").warn, "careful")
        assert kind != "wrong"

    findings = {}
    count = explore("target", target, 60, 0, findings)
    assert count.cases == 60 or {k[1] for k in findings} == {
        "ValueError",
        "UserWarning",
        "AssertionError",
    }
    assert {k[1] for k in findings} == {"ValueError", "UserWarning", "AssertionError"}
    with pytest.raises(ValueError, match="invalid literal"):
        run_one(lambda case: case.call("int", int, "x"), None)


def test_a_geodiag_error_is_no_finding():
    def target(case: Case) -> None:
        assert not case.call("threshold", reader.geodiag.threshold, -1)

    run_one(target, None)


@pytest.mark.parametrize("seed", reader.seeds(), ids=lambda s: str(s[0]))
def test_readers_on_their_seeds(seed):
    reader.test_one_input(seed)
