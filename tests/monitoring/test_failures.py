"""What fails in a measurement or a sink is recorded, and never reaches the training loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

import geodiag
from geodiag import Monitor
from geodiag.errors import NormError, StaleOracle
from geodiag.oracles import CallablesProblem
from geodiag.records import read_records
from tests.monitored import LR, G, H, W, gradient, loss, note, pair, run


class TestFailures:
    """Whatever fails is in the note; the numbers that are known are there; nothing is raised."""

    def only(self, records):
        (record,) = records
        return record

    def test_a_loss_that_raises(self):
        def bad(w):
            raise RuntimeError("no\nmemory")

        record = self.only(run(*pair(first=bad), steps=1))
        assert "RuntimeError: no memory" in record.note
        assert math.isnan(record.loss)
        assert math.isnan(record.sharpness)
        assert record.dual_norm == pytest.approx(np.linalg.norm(G))
        assert (record.lr, record.bound) == (LR, "")

    def test_a_loss_that_is_not_finite(self):
        record = self.only(run(*pair(first=lambda w: math.nan), steps=1))
        assert "the loss is not finite" in record.note
        assert math.isnan(record.sharpness)
        assert record.threshold == 2 / LR
        assert math.isnan(record.ratio)

    def test_a_gradient_that_is_not_finite(self):
        record = self.only(run(*pair(second=lambda w: {"x": W * math.nan}), steps=1))
        assert "the gradient is not finite" in record.note
        assert record.loss == pytest.approx(0.5 * W @ H @ W)
        assert math.isnan(record.dual_norm)

    @pytest.mark.parametrize("norm", ["spectral", "linf"])
    def test_a_gradient_of_nan_survives_every_norm(self, norm):
        nan = {"W": np.full((2, 3), math.nan)}
        monitor = Monitor(
            (lambda w: 1.0, lambda w: nan), norm, params={"W": np.ones((2, 3))}, lr=LR, every=1
        )
        monitor.before(0)
        monitor.after({"W": np.zeros((2, 3))})
        assert "not finite" in self.only(monitor.records).note

    def test_a_step_into_the_void(self):
        monitor, w = pair()
        monitor.before(0)
        w["x"] *= math.inf
        record = monitor.after()
        assert "the step is not finite" in record.note
        assert math.isnan(record.directional_smoothness)
        assert record.sharpness == pytest.approx(4.0, rel=4e-4)

    def test_a_loss_that_overflows_after_the_step(self):
        steep = (lambda w: np.exp(np.sum(w["x"])), lambda w: {"x": 0 * w["x"]})
        monitor = Monitor(steep, params={"x": np.zeros(3)}, lr=LR, every=1)
        monitor.before(0)
        with np.errstate(over="ignore"):
            record = monitor.after({"x": np.full(3, 1e3)})
        assert "one end of the step is not finite" in record.note
        assert math.isnan(record.directional_smoothness)

    def test_a_step_of_length_zero(self):
        monitor, _ = pair()
        monitor.before(0)
        record = monitor.after()
        assert note(record) == "the step was zero"
        assert math.isnan(record.directional_smoothness)
        assert math.isnan(record.curvature)

    def test_a_step_lost_in_the_losses_rounding(self):
        monitor, w = pair(first=lambda w: 1e12 + loss(w))
        monitor.before(0)
        w["x"] -= 1e-9 * G
        record = monitor.after()
        assert "D is from gradients along the step" in record.note
        assert record.directional_smoothness == pytest.approx(G @ H @ G / (G @ G), rel=1e-5)

    @pytest.mark.parametrize("length", [1e-170, 1e160])
    def test_a_step_of_extreme_length(self, length):
        pair = lambda w: 0.5 * float(w["x"] @ w["x"]), lambda w: {"x": 1.0 * w["x"]}
        monitor = Monitor(pair, "linf", params={"x": np.zeros(3)}, lr=LR, every=1)
        monitor.before(0)
        with np.errstate(all="ignore"):
            record = monitor.after({"x": np.asarray([length, 0.0, 0.0])})
        assert "Error" not in record.note
        assert math.isnan(record.directional_smoothness)
        assert record.curvature == pytest.approx(1.0, rel=1e-5)

    def test_points_of_other_shapes(self):
        monitor, _ = pair()
        monitor.observe(0, {"y": W}, {"x": W})
        monitor.observe(1, {"x": W}, {"x": W[:2]})
        first, second = monitor.records
        assert "ShapeError" in first.note
        assert "ShapeError" in second.note
        assert second.sharpness == pytest.approx(4.0, rel=4e-4)

    def test_a_norm_that_raises(self):
        def norm():
            raise KeyError("exp_avg_sq")

        record = self.only(run(*pair(norm=norm), steps=1))
        assert "exp_avg_sq" in record.note
        assert math.isnan(record.sharpness)

    def test_the_run_goes_on_after_a_failure(self):
        broken = [False]

        def sometimes(w):
            return math.nan if broken[0] else loss(w)

        monitor, w = pair(first=sometimes)
        for step in range(3):
            broken[0] = step == 1
            monitor.before(step)
            w["x"] *= 0.9
            monitor.after()
        assert [math.isnan(r.sharpness) for r in monitor.records] == [False, True, False]

    def test_every_that_raises_is_one_warning(self):
        monitor, _ = pair(every=lambda step: 1 / 0)
        with pytest.warns(RuntimeWarning, match="ZeroDivisionError") as caught:
            assert not any(monitor.due(step) for step in range(5))
        assert len(caught) == 1

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
    def test_the_user_can_still_stop(self, stop):
        def stopped(w):
            raise stop

        monitor, _ = pair(first=stopped)
        with pytest.raises(stop):
            monitor.before(0)

    def test_a_problem_that_goes_stale_with_the_step_is_frozen_again(self):
        """As a torch model does, whose BatchNorm buffers move between the halves."""
        moved = [False]

        class Stale(CallablesProblem):
            def at(self, params=None):
                oracle, made = super().at(params), moved[0]
                ask = oracle.loss_at

                def loss_at(w):
                    if moved[0] and not made:
                        raise StaleOracle("the buffers changed")
                    return ask(w)

                oracle.loss_at = loss_at
                return oracle

        monitor = Monitor(Stale(loss, gradient, {"x": W}), lr=LR, every=1)
        monitor.before(0, {"x": W})
        moved[0] = True
        record = monitor.after({"x": W - LR * G})
        assert record.directional_smoothness == pytest.approx(G @ H @ G / (G @ G), rel=1e-10)
        assert "as they were after the step" in record.note


def test_a_certificate_of_a_norm_without_an_envelope_is_refused_at_once():
    class Largest(geodiag.Norm):
        def value(self, d):
            return geodiag.norms.Linf().value(d)

        def lmo(self, g):
            return geodiag.norms.Linf().lmo(g)

    for norm in (Largest(), geodiag.norms.Scaled(Largest(), 2.0), geodiag.norms.SumOver(Largest())):
        with pytest.raises(NormError, match="declares no quadratic envelope"):
            Monitor(H, norm, lr=LR, certificate=True)
    Monitor(H, "linf", lr=LR, certificate=True).close()


class TestSinks:
    class Broken(geodiag.sinks.Sink):
        def __init__(self, error):
            self.error, self.seen = error, 0

        def write(self, record):
            self.seen += 1
            raise self.error

        def close(self):
            raise self.error

    def test_a_broken_sink_is_one_warning_and_the_others_go_on(self, tmp_path):
        broken, path = self.Broken(OSError("disk full")), tmp_path / "run.jsonl"
        monitor, w = pair(log=[broken, path])
        with pytest.warns(RuntimeWarning, match="disk full") as caught:
            records = run(monitor, w, steps=4)
        assert len(caught) == 1
        assert broken.seen == 4
        assert read_records(path) == records

    def test_a_sink_without_a_hash(self):
        class Unhashable(self.Broken):
            __hash__ = None

        monitor, w = pair(log=Unhashable(OSError("disk full")))
        with pytest.warns(RuntimeWarning, match="disk full") as caught:
            assert len(run(monitor, w, steps=4)) == 4
        assert len(caught) == 1

    def test_not_even_where_warnings_are_errors(self, capsys):
        monitor, w = pair(log=self.Broken(OSError("disk full")))
        assert len(run(monitor, w)) == 3  # the suite runs with warnings as errors
        assert capsys.readouterr().err.count("disk full") == 1

    def test_a_second_header_is_no_failure_where_warnings_are_errors(self, tmp_path, capsys):
        path = tmp_path / "run.csv"
        path.write_text("step,loss\n0,0.5\n")
        monitor, w = pair(log=path)
        assert len(run(monitor, w)) == 3
        err = capsys.readouterr().err
        assert err.count("a second header was written") == 1
        assert "failed" not in err
        assert len(read_records(path)) == 4

    def test_records_are_on_disk_before_the_next_step(self, tmp_path):
        path = tmp_path / "run.jsonl"
        monitor, w = pair(log=path)
        for step in range(3):
            monitor.observe(step, {"x": w["x"]}, {"x": 0.9 * w["x"]})
            assert len(read_records(path)) == step + 1
