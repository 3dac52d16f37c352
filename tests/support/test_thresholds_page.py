"""docs/thresholds.md has a row for each rule that is simulated, as it is read now."""

from __future__ import annotations

import jax
import pytest

from tests.geodiag_torch.test_thresholds import RULES
from tests.support import thresholds
from tests.support import thresholds_changed as changed
from tests.support import thresholds_optax as of_optax

PAGE = thresholds.PAGE.read_text("utf-8")
HEADS = (thresholds.HEAD, changed.HEAD, of_optax.HEAD, changed.ONE_STEP)
RATIOS = (thresholds.BELOW, thresholds.ABOVE)


def lines(head):
    """The rows of the table below a heading."""
    below = PAGE[PAGE.index(head) + len(head) :]
    return below.split("\n\n")[0].splitlines()


def cells(head, names, name):
    line = lines(head)[[*names].index(name)]
    return tuple(line.removeprefix("| ").removesuffix(" |").split(" | "))


TABLES = (RULES, changed.CHANGES, of_optax.RULES, changed.ONE)


@pytest.mark.parametrize(("head", "names"), list(zip(HEADS, TABLES, strict=True)))
def test_the_page_has_every_rule(head, names):
    firsts = [line.split(" | ")[0].removeprefix("| ").strip("`") for line in lines(head)]
    assert firsts == [name.strip("`") for name in names]


@pytest.mark.parametrize("name", RULES)
def test_row_is_as_it_is_read_now(name):
    """Whether it grows is measured in tests/geodiag_torch/test_thresholds.py, and written here."""
    check(cells(thresholds.HEAD, RULES, name), thresholds.row(name))


@pytest.mark.parametrize("name", changed.CHANGES)
def test_of_changed_gradients(name):
    check(cells(changed.HEAD, changed.CHANGES, name), changed.row(name))
    below, above = (changed.growth(name, at) for at in RATIOS)
    assert below < 1
    assert above > 1000


@pytest.mark.parametrize("name", of_optax.RULES)
def test_of_optax(name):
    check(cells(of_optax.HEAD, of_optax.RULES, name), of_optax.row(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", of_optax.RULES)
def test_optax_grows_where_the_page_says(name):
    with jax.enable_x64(True):
        below, above = (of_optax.growth(name, at) for at in RATIOS)
    assert below < 1
    assert above > 1000


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if "optax" in n or "chain" in n else ())
        for n in changed.ONE
    ],
)
def test_of_one_step(name):
    with jax.enable_x64(True):
        below, above = (changed.one_step(name, at) for at in RATIOS)
    assert below == pytest.approx(0.96, abs=1e-3)
    assert above == pytest.approx(1.04, abs=1e-3)
    assert cells(changed.ONE_STEP, changed.ONE, name)[2:] == ("0.96", "1.04")


def check(found, row):
    """A row of a table over many steps."""
    *now, below, above = found
    assert tuple(now) == row
    assert float(below) < 1
    assert above == "over 1000"
