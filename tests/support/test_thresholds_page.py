"""docs/thresholds.md has a row for each rule that is simulated, as it is read now."""

from __future__ import annotations

import pytest

from tests.geodiag_torch.test_thresholds import RULES
from tests.support import thresholds

LINES = thresholds.PAGE.read_text("utf-8").removeprefix(thresholds.HEAD).splitlines()


def test_the_page_has_every_rule():
    assert [line.split(" | ")[0].removeprefix("| ") for line in LINES] == [*RULES]


@pytest.mark.parametrize("name", RULES)
def test_row_is_as_it_is_read_now(name):
    """Whether it grows is measured in tests/geodiag_torch/test_thresholds.py, and written here."""
    line = LINES[[*RULES].index(name)]
    assert line.startswith(f"| {' | '.join(thresholds.row(name))} | ")
    below, above = line.removesuffix(" |").split(" | ")[-2:]
    assert float(below) < 1
    assert above == "over 1000"
