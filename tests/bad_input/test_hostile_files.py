"""What the fuzz suite (tests/fuzz) has found in logs and their pictures: one test each."""

from __future__ import annotations

import math

import pytest

import geodiag
from geodiag import Record
from geodiag.errors import ArgumentError

HUGE = 1.7e308


@pytest.mark.parametrize("step", [10**30, -(10**30), 10**400, None, "1"])
def test_a_step_beyond_every_axis(step):
    with pytest.raises(ArgumentError, match="a step cannot be drawn"):
        geodiag.plot([Record(step)])


@pytest.mark.parametrize("name", ["loss", "sharpness", "upper", "threshold", "ratio"])
@pytest.mark.parametrize("value", [HUGE, -HUGE, math.inf, 5e-324])
def test_numbers_beyond_every_axis_are_left_out(name, value, tmp_path):
    run = [Record(0, loss=1.0, sharpness=2.0, threshold=3.0, ratio=0.6), Record(1, **{name: value})]
    geodiag.plot(run, tmp_path / "run.svg")  # drawing is what failed; warnings are errors


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"step": ' + b"9" * 5000 + b"}",
        b'{"step": 1e999}',
        b'{"step": NaN}',
        b'{"step": 1, "loss": "\xff"}',
        b'{"step": 1, "bound": "MAYBE"}',
        b'{"step": true}',
        b'{"step": 1, "loss": ' + b"1" * 400 + b"}",
        b"\x00" * 100,
        b"\xff\xfe{\x00}\x00",
        b"x" * 10_000_000,
    ],
    ids=lambda line: f"{line[:12]!r} of {len(line)}",
)
def test_a_hostile_line_is_left_out_and_the_others_are_read(line, tmp_path):
    log = tmp_path / "run.jsonl"
    log.write_bytes(b'{"step": 1, "loss": 0.5}\r\n' + line + b'\n{"step": 2}\n')
    with pytest.warns(RuntimeWarning, match="line 2 is left out"):
        found = geodiag.read_records(log)
    assert [r.step for r in found] == [1, 2]
    log.write_bytes(line)
    with pytest.raises(ArgumentError, match="not a log of the Monitor"):
        geodiag.read_records(log)


def test_what_json_allows_beyond_records(tmp_path):
    """Of keys that are there twice the last counts; unknown ones are extras; NaN is NaN."""
    log = tmp_path / "run.jsonl"
    log.write_text(
        '{"step": 1, "step": 2, "loss": NaN, "lr": Infinity, "__class__": "x", "more": 2}\n'
    )
    (found,) = geodiag.read_records(log)
    assert found.step == 2
    assert math.isnan(found.loss)
    assert found.lr == math.inf
    assert found.extras == {"more": 2.0}
