"""When the Monitor measures, what it goes on from, and what a resumed run knows of both."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import geodiag
from geodiag import Monitor
from geodiag.errors import ArgumentError
from geodiag.monitoring.schedule import Schedule
from geodiag.oracles import CallablesProblem
from tests.monitored import LR, H, W, loss, note, pair

PACE = Schedule(1).state_dict()


def state_with(witness=None, ahead=None):
    """That of a SharpnessTracker, as it comes from JSON."""
    plain = {"x": [1.0, 2.0]}
    return {
        "last": {"witness": witness or plain, "age": 1, "norm": "L2()"},
        "ahead": ahead or plain,
        "value": 1.0,
        "found": 1.0,
        "age": 1,
        "cold_after": 20,
        "since": 1,
        "explore_after": 3,
        "ordinary": 1.0,
    }


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still, but for what a test adds."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


class TestSchedule:
    def test_every_so_many_steps(self):
        monitor = Monitor(H, every=3)
        assert [s for s in range(10) if monitor.due(s)] == [0, 3, 6, 9]
        assert [s for s in range(10) if monitor.due(s)] == [0, 3, 6, 9]  # a question only

    def test_where_a_function_says(self):
        monitor = Monitor(H, every=lambda step: step in (2, 5))
        assert [s for s in range(10) if monitor.due(s)] == [2, 5]

    @pytest.mark.parametrize("budget", [0.02, 0.05, 0.3])
    @pytest.mark.parametrize("cost", [0.3, 1.0, 7.0])
    def test_a_budget_is_kept_within_a_factor_of_one_and_a_half(self, budget, cost, clock):
        """From the second measurement on, at whatever step the run is stopped.

        Between measurements at cost·(k + ½)/budget, k = 1, 2, …, of cost each, the share is least,
        budget·k/(k + ½), before one and greatest, budget·(k + 1)/(k + ½), behind it.
        """
        pace, spent, began, count = Schedule(1, budget), 0.0, clock[0], 0
        for step in range(20_000):
            if pace.due(step):
                start, count = pace.begin(step), count + 1
                clock[0] += cost
                spent += pace.spend(start)
            clock[0] += 0.05  # the training step
            if count >= 2:
                share = spent / (clock[0] - began)
                # The grain of the steps, and that a measurement itself lasts, lower it a little.
                assert budget / 1.5 / (1 + 2 * budget) < share < budget * 4 / 3
        assert count >= 2

    def test_the_monitor_keeps_the_account(self, clock):
        spent = [0.0]

        def slow(w):
            clock[0] += 1.0
            spent[0] += 1.0
            return loss(w)

        monitor, _ = pair(first=slow, every=1, budget=0.1)
        began = clock[0]
        for step in range(1000):
            if monitor.due(step):
                monitor.before(step)
            clock[0] += 1.0
            monitor.after({"x": 0.9 * W})
        assert 0.1 / 1.5 < spent[0] / (clock[0] - began) < 0.1 * 1.5
        assert sum(r.seconds for r in monitor.records) == pytest.approx(spent[0])

    def test_under_a_budget_every_is_the_least_distance(self, clock):
        monitor, _ = pair(every=7, budget=0.5)
        for step in range(30):
            if monitor.due(step):
                monitor.before(step)
            clock[0] += 1.0
            monitor.after()
        assert [r.step for r in monitor.records] == [0, 7, 14, 21, 28]

    def test_the_account_is_resumed(self, clock):

        def slow(w):
            clock[0] += 1.0
            return loss(w)

        first, _ = pair(first=slow, every=1, budget=0.1)
        first.observe(0, {"x": W}, {"x": 0.9 * W})
        took, state = clock[0], first.state_dict()
        second, _ = pair(every=1, budget=0.1)
        clock[0] = 1e6  # the machine stood still meanwhile
        second.load_state_dict(state)
        assert not second.due(1)
        clock[0] += 1.5 * took / 0.1  # spent and half of the next, over the budget
        assert second.due(1)


class TestTracking:
    """H acts on 200 coordinates: from nothing λ_max takes tens of products."""

    big = np.diag(np.geomspace(0.01, 4.0, 200))

    def problem(self):
        point = {"x": np.ones(200)}
        return CallablesProblem(
            lambda w: 0.5 * w["x"] @ self.big @ w["x"], lambda w: {"x": self.big @ w["x"]}, point
        )

    def observe(self, monitor, step):
        w = {"x": np.full(200, 0.9**step)}
        return monitor.observe(step, w, {"x": 0.9 * w["x"]})

    def test_a_measurement_goes_on_from_the_last(self):
        monitor = Monitor(self.problem(), lr=LR, every=1)
        counts = [self.observe(monitor, step).num_hvps for step in range(4)]
        assert max(counts[1:]) < counts[0]
        assert counts[3] <= 3  # one or two that track, one along the step

    def test_a_norm_that_changes_starts_from_the_last_direction(self):
        weights = iter([np.full(200, 1.0), np.full(200, 2.0), np.full(200, 4.0)])

        def norm():
            return geodiag.norms.Preconditioned({"x": next(weights)})

        monitor = Monitor(self.problem(), norm, lr=LR, every=1, rtol=1e-5)
        found = [self.observe(monitor, step) for step in range(3)]
        assert [r.sharpness for r in found] == pytest.approx([4.0, 2.0, 1.0], rel=1e-5)
        assert [note(r) for r in found] == ["", "", ""]

    def test_a_given_rtol_holds(self):
        loose, fine = (Monitor(self.problem(), lr=LR, rtol=r) for r in (0.3, 1e-7))
        assert self.observe(loose, 0).num_hvps < self.observe(fine, 0).num_hvps
        assert fine.records[0].sharpness == pytest.approx(4.0, rel=1e-9)

    def test_state_goes_through_json(self):
        first = Monitor(self.problem(), lr=LR, every=1, budget=0.5)
        self.observe(first, 0)
        self.observe(first, 1)
        state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
        second = Monitor(self.problem(), lr=LR, every=1, budget=0.5)
        second.load_state_dict(state)
        assert second.state_dict()["tracker"] == first.state_dict()["tracker"]
        first.before(2, {"x": np.full(200, 0.81)})
        second.before(2, {"x": np.full(200, 0.81)})
        one, other = (m.after({"x": np.full(200, 0.729)}) for m in (first, second))
        assert one.num_hvps <= 3
        assert replace(other, seconds=0.0, note=note(other)) == replace(one, seconds=0.0)

    def test_a_live_norm_resumes_too(self):
        first = Monitor(self.problem(), geodiag.norms.L2, lr=LR, every=1)
        self.observe(first, 0)
        second = Monitor(self.problem(), geodiag.norms.L2, lr=LR, every=1)
        second.load_state_dict(first.state_dict())
        assert note(self.observe(second, 1)) == ""

    @pytest.mark.parametrize(
        "state",
        [
            {},
            {"version": 2},
            None,
            {"version": 1, "tracker": {"last": {"x": 1}}, "schedule": {}},
            {"version": 1, "tracker": {"last": [], "ahead": None}, "schedule": {}},
            {"version": 1, "tracker": {"last": None, "ahead": {"x": [1.0]}}, "schedule": {}},
            {"version": 1, "tracker": state_with(ahead={"x": {"x": [1.0]}}), "schedule": PACE},
            {"version": 1, "tracker": state_with(witness={"x": [[1.0], [2, 3]]}), "schedule": PACE},
            {"version": 1, "tracker": state_with(), "schedule": np.float16(1.0)},
        ],
    )
    def test_another_state_is_refused(self, state):
        monitor = Monitor(self.problem())
        with pytest.raises(ArgumentError, match="not the state"):
            monitor.load_state_dict(state)
        plain = {"version": 1, "tracker": state_with(), "schedule": PACE}
        monitor.load_state_dict(plain)  # what the refused ones differ from
        assert json.loads(json.dumps(monitor.state_dict()))["tracker"] == state_with()
