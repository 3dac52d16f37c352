"""Runs cases and counts them; every finding is kept with its shortest example."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.case import Case, strict

SRC = str(Path(__file__).parents[2] / "src")
# Documented: of a log's bad lines, of a Monitor's failing sink or ``every=``.
DOCUMENTED = r".*is left out: .*|geodiag\.Monitor: .*"
NO_CHECKS = tuple(HealthCheck)


@dataclass
class Finding:
    """An exception that is none of geodiag's, or a wrong answer."""

    what: str
    where: str
    example: str
    times: int = 1


@dataclass
class Count:
    """Of one target."""

    cases: int = 0
    answered: int = 0  # cases in which a call returned
    seconds: float = 0.0


def run_one(target: Callable[[Case], None], draw: Callable[[Any], Any]) -> Case:
    """One case of a target.

    Raises:
        Exception: a finding, with the calls that led to it as a note.
    """
    case = Case(draw)
    try:
        with strict(allowed=DOCUMENTED):
            target(case)
    except Exception as e:
        e.add_note(f"after: {case}")
        raise
    return case


def explore(
    name: str,
    target: Callable[[Case], None],
    cases: int,
    seeded: int,
    findings: dict[tuple[str, str, str], Finding],
) -> Count:
    """So many cases of a target; findings are added to the dict, and do not stop it."""
    count = Count()

    @seed(seeded)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=NO_CHECKS,
    )
    @given(st.data())
    def examples(data: Any) -> None:
        case = Case(data.draw)
        try:
            with strict(allowed=DOCUMENTED):
                target(case)
        except Exception as e:
            if type(e).__module__.startswith("hypothesis"):
                raise
            _keep(findings, name, e, str(case))
        count.cases += 1
        count.answered += case.answered > 0

    began = time.perf_counter()
    examples()
    count.seconds = time.perf_counter() - began
    return count


def _keep(
    findings: dict[tuple[str, str, str], Finding], name: str, e: Exception, example: str
) -> None:
    frames = [f for f in traceback.extract_tb(e.__traceback__) if f.filename.startswith(SRC)]
    places = [f"{Path(f.filename).relative_to(SRC)}:{f.lineno} {f.name}" for f in frames]
    where = places[-1] if places else "a wrong answer"
    key = (name, type(e).__name__, where)
    if key not in findings:
        findings[key] = Finding(
            f"{type(e).__name__}: {str(e)[:200]}", " < ".join(places[::-1][:4]), example
        )
        return
    found = findings[key]
    found.times += 1
    if len(example) < len(found.example):
        found.example, found.what = example, f"{type(e).__name__}: {str(e)[:200]}"
