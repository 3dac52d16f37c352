"""S followed along a run by one product a measurement, against eigenvalues and all vertices.

The loss is ½⟨w, H w⟩, whose H the tests move from step to step.
"""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

import geodiag
import geodiag.monitoring.sharpness_tracker
from geodiag import Monitor
from geodiag.estimators.budgets import RESTART_BUDGET
from geodiag.monitoring.sharpness_tracker import COLD_MAX, EXPLORE_FIRST
from geodiag.oracles import CallablesProblem
from tests.monitored import LR, note

N = 12
VERTICES = np.array([(1, *v) for v in itertools.product((-1.0, 1.0), repeat=N - 1)])


class Moving:
    """A problem whose Hessian can be set, and that counts the products asked for."""

    def __init__(self, H, **options):
        self.H = H
        self.problem = CallablesProblem(
            lambda w: 0.5 * w["x"] @ self.H @ w["x"],
            lambda w: {"x": self.H @ w["x"]},
            {"x": np.ones(len(H))},
        )
        self.monitor = Monitor(self.problem, lr=LR, every=1, **options)
        self.w = np.random.default_rng(3).standard_normal(len(H))

    def observe(self, step=None, norm=1e-3):
        w = self.w
        s = -norm * self.H @ w if step is None else step
        return self.monitor.observe(len(self.monitor.records), {"x": w}, {"x": w + s})


def positive(n, seed, top=1.0):
    """A positive definite matrix whose top eigenvalue stands apart."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (q * np.append(4.0 * top, np.linspace(0.1, 2.0, n - 1))) @ q.T


def turned(H, angle):
    """H in coordinates that have moved a little."""
    c, s = math.cos(angle), math.sin(angle)
    turn = np.eye(len(H))
    for i in range(0, len(H) - 1, 2):
        turn[i : i + 2, i : i + 2] = [[c, -s], [s, c]]
    return turn @ H @ turn.T


def searches(monkeypatch):
    """Filled with a call for every measurement that is not a power step."""
    calls = []
    measure = geodiag.monitoring.sharpness_tracker.measured

    def counted(*arguments, **keywords):
        calls.append(keywords["start"])
        return measure(*arguments, **keywords)

    monkeypatch.setattr(geodiag.monitoring.sharpness_tracker, "measured", counted)
    return calls


class TestQuadraticNorm:
    def test_a_turning_hessian_is_followed_at_two_products(self):
        run = Moving(positive(60, 0), norm="l2")
        records = []
        for _ in range(15):
            records.append(run.observe())
            # The residual is 0.02 at most, and the next eigenvalue half of the top one: the value
            # errs by 0.02² / (1 − ½) = 8e-4 at most.
            assert 0.9992 <= records[-1].sharpness / np.linalg.eigvalsh(run.H)[-1] <= 1 + 1e-8
            run.H = turned(run.H, 0.01)
        assert all(r.num_hvps <= 3 for r in records[3:])
        assert sum(r.num_hvps == 2 for r in records) >= 10  # one power step, one along the step

    def test_a_hessian_that_jumps_is_searched_again(self, monkeypatch):
        calls = searches(monkeypatch)
        run = Moving(positive(60, 0), norm="l2")
        for _ in range(4):
            run.observe()
        before = len(calls)
        run.H = positive(60, 1, top=2.0)
        record = run.observe()
        assert len(calls) == before + 1
        assert record.sharpness == pytest.approx(8.0, rel=1e-3)


class TestLinf:
    def truth(self, H):
        """For H ⪰ 0 the maximum over the cube is at a vertex."""
        return np.einsum("ki,ij,kj->k", VERTICES, H, VERTICES).max()

    def test_a_turning_hessian_is_followed_from_below(self):
        run = Moving(positive(N, 0), norm="linf")
        ratios, counts = [], []
        for _ in range(40):
            record = run.observe()
            ratios.append(record.sharpness / self.truth(run.H))
            counts.append(record.num_hvps)
            run.H = turned(run.H, 0.01)
        assert max(ratios) <= 1 + 1e-8  # differences of linear gradients err by ε^⅔
        assert np.median(ratios) >= 0.99
        assert min(ratios[3:]) >= 0.9
        assert np.median(counts) == 2

    def test_a_hessian_that_shrinks_is_followed_without_a_search(self, monkeypatch):
        calls = searches(monkeypatch)
        run = Moving(positive(N, 0), norm="linf")
        for step in range(5):
            before = len(calls)
            record = run.observe()
            assert record.sharpness == pytest.approx(self.truth(run.H), rel=1e-2)
            assert step in (0, 2) or (record.num_hvps <= 3 and len(calls) == before)
            run.H = 0.99 * run.H

    def test_a_value_much_lower_is_not_believed(self, monkeypatch):
        """Half the old maximum at the old witness, but more elsewhere."""
        a, b = np.ones(N), np.resize([1.0, -1.0], N)
        calls = searches(monkeypatch)
        run = Moving(np.outer(a, a) + 0.5 * np.outer(b, b), norm="linf")
        for _ in range(4):
            assert run.observe().sharpness == pytest.approx(N**2, rel=1e-6)
        before = len(calls)
        run.H = 0.5 * np.outer(a, a) + 0.6 * np.outer(b, b)
        record = run.observe()
        assert len(calls) == before + 1
        assert record.sharpness >= 0.5 * N**2 * (1 - 1e-6)

    def test_searches_that_find_nothing_new_become_rare(self, monkeypatch):
        calls = searches(monkeypatch)
        run = Moving(positive(N, 0), norm="linf")
        at = []
        for step in range(2 * COLD_MAX):
            before = len(calls)
            run.observe()
            at += [step] * (len(calls) - before)
        # Nothing drifts here: cold after 20, 40, 80; exploratory after 2, 3, 6, 12, then each 20.
        assert at == [0, 2, 5, 11, 20, 32, 52, 60, 80, 100, 120, 140]

    def test_what_an_exploratory_search_finds_brings_the_next_one_near(self, monkeypatch):
        """Two maxima; while the one is followed the other grows past it."""
        a, b = np.ones(N), np.resize([1.0, -1.0], N)
        calls = searches(monkeypatch)
        run = Moving(np.outer(a, a) + 0.5 * np.outer(b, b), norm="linf")
        at, values = [], []
        for step in range(18):
            before = len(calls)
            run.H = np.outer(a, a) + (2.0 if step >= 7 else 0.5) * np.outer(b, b)
            values.append(run.observe(step=1e-3 * a).sharpness / N**2)
            at += [step] * (len(calls) - before)
        assert at == [0, 2, 5, 11, 14]  # 3 after the find, not 12
        assert values[:11] == pytest.approx([1.0] * 11)
        assert values[11:] == pytest.approx([2.0] * 7)

    def test_the_first_search_takes_no_more_than_a_restart(self):
        assert Moving(positive(N, 0), norm="linf").observe().num_hvps <= RESTART_BUDGET + 1


class TestTheStepItself:
    def test_where_it_bends_more_than_the_witness_it_is_the_witness(self):
        """With one product S is that at lmo(g), and the step goes elsewhere."""
        a, b = np.ones(N), np.resize([1.0, -1.0], N)
        run = Moving(np.outer(a, a) + 3.0 * np.outer(b, b), norm="linf", max_hvps=2)
        run.w = a
        record = run.observe(step=1e-3 * b)
        assert record.curvature == pytest.approx(3.0 * N**2, rel=1e-6)
        assert record.sharpness == record.curvature
        assert record.bound == "LOWER"
        assert record.ratio == pytest.approx(record.sharpness * LR / 2)
        assert note(record) == ""

    def test_the_next_measurement_goes_on_from_there(self):
        a, b = np.ones(N), np.resize([1.0, -1.0], N)
        run = Moving(np.outer(a, a) + 3.0 * np.outer(b, b), norm="linf", max_hvps=2)
        run.w = a
        run.observe(step=1e-3 * b)
        assert run.observe().sharpness == pytest.approx(3.0 * N**2, rel=1e-6)


@pytest.mark.parametrize("factor", [1.8, 0.5])
def test_a_rise_is_searched_as_a_fall_is(factor, monkeypatch):
    """Far away another maximum is larger, whichever way that of the witness has moved."""
    a, b = np.ones(N), np.resize([1.0, -1.0], N)
    calls = searches(monkeypatch)
    run = Moving(np.outer(a, a) + 0.5 * np.outer(b, b), norm="linf")
    assert run.observe().status in ("CONVERGED", "BUDGET")
    before = len(calls)
    run.H = factor * np.outer(a, a) + 2.5 * np.outer(b, b)
    record = run.observe(step=1e-3 * a)
    assert len(calls) == before + 1
    assert record.sharpness == pytest.approx(2.5 * N**2)
    assert record.status in ("CONVERGED", "BUDGET")


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_product_that_is_not_finite_is_noted(norm):
    run = Moving(positive(N if norm == "linf" else 60, 0), norm=norm)
    for _ in range(3):
        run.observe()
    run.H = run.H * math.nan
    record = run.observe()
    assert "not finite" in record.note
    assert math.isnan(record.sharpness)
    run.H = positive(len(run.H), 0)
    assert math.isfinite(run.observe().sharpness)


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_where_nothing_is_positive_no_exploration_is_due_every_second_time(sign):
    run = Moving(sign * np.eye(N), norm="linf")
    due = []
    for step in range(18):  # no cold search but the first
        run.observe()
        if run.monitor.state_dict()["tracker"]["since"] == 0:
            due.append(step)
    # The values of searches lie far apart there. That is not taken for a Hessian that has changed,
    # which would bring an exploration at every second measurement.
    assert len(due) > 1
    assert min(np.diff(due)) >= EXPLORE_FIRST


def test_a_state_of_other_parameters_leaves_no_schedule():
    old, new = Moving(positive(N, 0), norm="linf"), Moving(positive(8, 0), norm="linf")
    for _ in range(16):
        old.observe()
    new.monitor.load_state_dict(old.monitor.state_dict())
    new.observe()
    fresh = Moving(positive(8, 0), norm="linf")
    fresh.observe()
    for name in ("age", "cold_after", "since", "explore_after"):
        assert (
            new.monitor.state_dict()["tracker"][name] == fresh.monitor.state_dict()["tracker"][name]
        )


class Fixed(geodiag.SharpnessEstimator):
    """An estimator from outside, which builds its own result and leaves its state empty."""

    def estimate(self, oracle, norm, start=None, options=geodiag.estimators.Options()):
        d = {"x": np.eye(N)[0]}
        return geodiag.SharpnessResult(
            value=float(d["x"] @ oracle.hvp(d)["x"]),
            direction=d,
            bound=geodiag.Bound.LOWER,
            status=geodiag.Status.COMPLETED,
            norm=repr(norm),
            estimator="Fixed()",
            num_hvps=1,
            dual_norm=1.0,
        )


def test_a_run_with_an_estimator_from_outside_can_be_saved():
    run = Moving(positive(N, 0), norm="l2", estimator=Fixed())
    run.observe()
    state = json.loads(json.dumps(run.monitor.state_dict()))
    again = Moving(positive(N, 0), norm="l2", estimator=Fixed())
    again.monitor.load_state_dict(state)
    # At least that of the fixed direction: the step's takes its place where it has more.
    assert again.observe().sharpness >= run.H[0, 0] - 1e-9
