"""What is said of a value below 32 bits, on matrices whose rounding is made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import geodiag
from geodiag import Status
from geodiag.oracles import CountingOracle
from geodiag.resolution import resolved

H = np.diag([2.0, 1.0])


class Half:
    """An oracle of ``H`` that says it is coarse; elsewhere its Hessian is another."""

    def __init__(self, eps: float, elsewhere: np.ndarray | None) -> None:
        self.inner, self.eps, self.elsewhere = geodiag.problem(H).at(), eps, elsewhere
        self.distance = 0.0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    @property
    def precision(self) -> float:
        return self.eps

    def moved(self, params):
        self.distance = max(float(np.abs(x).max()) for x in params.values())
        return None if self.elsewhere is None else geodiag.problem(self.elsewhere).at()


def measured(eps, elsewhere):
    oracle = Half(eps, elsewhere)
    result = geodiag.sharpness(H)
    return result, resolved(CountingOracle(oracle), result, 1e-4)


@pytest.mark.parametrize("eps", [0.0, 2.0**-52, 2.0**-23])
def test_from_32_bits_on_a_result_stays_as_it_is(eps):
    before, after = measured(eps, 1.5 * H)
    assert after is before


@pytest.mark.parametrize(
    ("eps", "elsewhere", "said"),
    [
        (2.0**-10, None, "about 0.1%"),  # no less than a spacing
        (2.0**-7, 1.001 * H, "about 0.8%"),
        (2.0**-7, 1.05 * H, "about 5.0%"),
        (2.0**-7, -0.5 * H, "does not resolve the value: rounding moves it by 3"),
        (2.0**-7, np.nan * H, "does not resolve the value: rounding moves it by inf"),
    ],
)
def test_the_uncertainty_is_what_another_rounding_changes(eps, elsewhere, said, monkeypatch):
    if elsewhere is not None and np.isnan(elsewhere).any():  # not a matrix to start from

        class NotFinite:
            def hvp(self, d):
                return {name: x * np.nan for name, x in d.items()}

        monkeypatch.setattr(Half, "moved", lambda self, params: NotFinite())
        elsewhere = None
    before, after = measured(eps, elsewhere)
    assert said in after.notes[-1]
    assert after.status is Status.PRECISION
    assert after.num_hvps == before.num_hvps + 1
    assert after.value == before.value


def test_other_statuses_stay():
    result = replace(geodiag.sharpness(H), status=Status.BUDGET)
    assert resolved(CountingOracle(Half(2.0**-7, 1.1 * H)), result, 1e-4).status is Status.BUDGET


def test_a_tolerance_that_is_resolved_is_met():
    result = geodiag.sharpness(H)
    after = resolved(CountingOracle(Half(2.0**-10, None)), result, 0.01)
    assert after.status is Status.CONVERGED
    assert len(after.notes) == 1
