"""The estimators pass ``check_estimator``, and faulty ones are caught by what broke."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

import numpy as np
import pytest

from geodiag import Bound, SharpnessEstimator, estimators
from geodiag.errors import NormError, PluginError
from geodiag.estimators import Options, choose
from geodiag.norms import L1, Linf
from geodiag.testing import check_estimator
from geodiag.testing.cases import cases, cross_polytope_maximum, cube_maximum
from tests import truth


class Auto(SharpnessEstimator):
    """The automatic choice as an estimator."""

    def estimate(self, oracle, norm, start=None, options=Options()):
        return choose(norm, oracle.space).estimate(oracle, norm, start, options)


class Limited(estimators.Ascent):
    """Ascent with 60 products, where it would take forty starts for want of a limit."""

    def estimate(self, oracle, norm, start=None, options=Options()):
        options = replace(options, max_hvps=options.max_hvps or 60)
        return super().estimate(oracle, norm, start, options)


BUILT_IN = [
    estimators.Lanczos(),
    estimators.Lanczos(basis=8),
    estimators.Enumerate(),
    estimators.Blockwise(),
    estimators.Ascent(starts=2),
    Limited(starts=2),
    estimators.FrankWolfe(iterations=10, restarts=2),
    Auto(),
]


@pytest.mark.parametrize(
    ("estimator", "seed"),
    [
        pytest.param(
            e,
            seed,
            marks=[pytest.mark.slow] * (type(e) is estimators.Ascent),
            id=f"{type(e).__name__} {e}-{seed}",
        )
        for seed in (0, 7)
        for e in BUILT_IN
    ],
)
def test_built_in(estimator, seed):
    check_estimator(estimator, seed=seed)


def test_the_checkers_own_truths():
    """The published truths agree with this suite's, found another way."""
    for seed, n in itertools.product(range(10), (1, 2, 3, 4)):
        H = truth.symmetric(n, seed)
        assert cube_maximum(H) == pytest.approx(truth.cube_faces(H), rel=1e-11)
        assert cross_polytope_maximum(H) == pytest.approx(truth.cross_faces(H), rel=1e-11)
    rows = {Linf: lambda D: np.abs(D).max(axis=1), L1: lambda D: np.abs(D).sum(axis=1)}
    checked = 0
    for case in cases():
        norm_rows = rows.get(type(case.norm))
        if norm_rows is not None:
            checked += 1
            assert truth.sampled(case.H, norm_rows, 2000) <= case.truth + 1e-12, case.label
    assert checked >= 14


class Faulty(SharpnessEstimator):
    """Any estimator's answer, spoilt."""

    def __init__(self, spoil):
        self.spoil = spoil

    def estimate(self, oracle, norm, start=None, options=Options()):
        return self.spoil(Auto().estimate(oracle, norm, start, options))


def longer(result):
    return replace(result, direction={n: 1.1 * x for n, x in result.direction.items()})


class Uncounted(Faulty):
    """Asks the oracle behind the counter's back."""

    def estimate(self, oracle, norm, start=None, options=Options()):
        oracle.hvp(oracle.point())
        return Auto().estimate(oracle, norm, start, options)


class Spendthrift(Faulty):
    def estimate(self, oracle, norm, start=None, options=Options()):
        return Auto().estimate(oracle, norm, start, replace(options, max_hvps=None))


class Unseeded(Faulty):
    calls = itertools.count()

    def estimate(self, oracle, norm, start=None, options=Options()):
        short = estimators.FrankWolfe(iterations=1, restarts=1)
        return short.estimate(oracle, norm, None, replace(options, seed=next(self.calls)))


class Swallowing(Faulty):
    """Returns the last good estimate where the products are NaN."""

    def estimate(self, oracle, norm, start=None, options=Options()):
        with contextlib.suppress(ArithmeticError):
            self.last = Auto().estimate(oracle, norm, start, options)
        return self.last


class Crashing(Faulty):
    """Meets NaN with an error that is not geodiag's."""

    def estimate(self, oracle, norm, start=None, options=Options()):
        try:
            return Auto().estimate(oracle, norm, start, options)
        except ArithmeticError as e:
            raise np.linalg.LinAlgError("SVD did not converge") from e


class Refusing(Faulty):
    def estimate(self, oracle, norm, start=None, options=Options()):
        raise NormError("not this one")


class Boasting(Faulty):
    """Calls a lower bound exact."""

    def estimate(self, oracle, norm, start=None, options=Options()):
        short = estimators.FrankWolfe(iterations=1, restarts=1)
        return replace(short.estimate(oracle, norm, start, options), bound=Bound.EXACT)


def raised(result):
    return replace(result, value=result.value * 1.001 + 1e-3)


FAULTS = {
    "a value that is not attained": (Faulty(raised), "value is not ⟨d, Hd⟩"),
    "a direction off the sphere": (Faulty(longer), "the direction must have norm 1"),
    "a number": (Faulty(float), "must return a SharpnessResult. Got: float"),
    "an upper bound below": (
        Faulty(lambda r: replace(r, upper=r.value - 1.0)),
        "upper is below the sharpness",
    ),
    "one product not counted": (Uncounted(None), "num_hvps does not count every product"),
    "a budget ignored": (Spendthrift(None), "max_hvps is not respected"),
    "no seed": (Unseeded(None), "equal seeds give different results"),
    "NaN swallowed": (Swallowing(None), "NaN must raise NonFiniteError"),
    "NaN with a foreign error": (Crashing(None), "NaN must raise NonFiniteError.*LinAlgError"),
    "exact in name only": (Boasting(None), "the bound says EXACT"),
    "every norm refused": (Refusing(None), "refuses every norm"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(fault):
    estimator, said = FAULTS[fault]
    with pytest.raises(PluginError, match=said):
        check_estimator(estimator)
