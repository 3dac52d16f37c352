"""What is said of a value whose products are inexact, on matrices whose rounding is made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import geodiag
from geodiag import Status
from geodiag.estimators.roundoff import resolved
from geodiag.oracles import CountingOracle

H = np.diag([2.0, 1.0])


class Coarse(CountingOracle):
    """``H``, said to be computed to ``eps``; in another way it is another matrix."""

    def __init__(self, eps, other):
        super().__init__(geodiag.problem(H).at())
        self.eps, self.other = eps, other

    @property
    def precision(self):
        return self.eps

    def independent_hvp(self, d):
        return None if self.other is None else {"x": self.other @ d["x"]}


def measured(eps, other, rtol=1e-4):
    result = geodiag.sharpness(H)
    return result, resolved(Coarse(eps, other), result, rtol)


def test_where_products_are_exact_a_result_stays_as_it_is():
    before, after = measured(2.0**-23, None)
    assert after is before


@pytest.mark.parametrize(
    ("eps", "other", "said"),
    [
        (2.0**-10, H, "rounding moves the value by about 0.00098 of it"),  # at least a spacing
        (2.0**-7, 1.001 * H, "about 0.0078 of it"),
        (2.0**-7, 1.05 * H, "about 0.05 of it"),
        (2.0**-7, -0.5 * H, "does not resolve the value: rounding moves it by 3"),
        (2.0**-7, np.nan * H, "does not resolve the value: rounding moves it by inf"),
        (2.0**-23, 1.05 * H, "another step moves the value by about 0.05 of it"),
    ],
)
def test_the_uncertainty_is_what_another_way_changes(eps, other, said):
    before, after = measured(eps, other)
    assert said in after.notes[-1]
    assert after.status is Status.PRECISION
    assert after.num_hvps == before.num_hvps + 1
    assert after.value == before.value


def test_differences_that_agree_need_no_note():
    before, after = measured(2.0**-23, (1 + 1e-6) * H)
    assert after == replace(before, num_hvps=before.num_hvps + 1, rounding=after.rounding)
    assert after.rounding == pytest.approx(3e-6 * before.value, rel=0.01)


def test_other_statuses_stay():
    result = replace(geodiag.sharpness(H), status=Status.BUDGET)
    assert resolved(Coarse(2.0**-7, 1.1 * H), result, 1e-4).status is Status.BUDGET


def test_a_tolerance_that_is_resolved_is_met():
    _, after = measured(2.0**-10, H, rtol=0.01)
    assert after.status is Status.CONVERGED
    assert len(after.notes) == 1
