"""The Monitor on quadratics, where every number of a record has a closed form.

The loss is ½⟨w, H w⟩ with H = diag(4, 1, ½). For any step s, D and the curvature are ⟨s, Hs⟩/‖s‖².
"""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest

import geodiag
from geodiag import Monitor, Update
from geodiag.errors import GeodiagError
from geodiag.oracles import CallablesProblem, MatrixProblem
from geodiag.records import read_records
from tests.monitored import LR, G, H, W, gradient, loss, note, pair, run

# norm: (S, ‖g‖* of g = H w, the steepest step −lr‖g‖*·lmo(g), ‖·‖ of a vector)
CLOSED = {
    "l2": (4.0, np.linalg.norm(G), -LR * G, np.linalg.norm),
    "linf": (5.5, np.abs(G).sum(), -LR * np.abs(G).sum() * np.sign(G), lambda s: np.abs(s).max()),
    "l1": (4.0, 4.0, -LR * np.array([4.0, 0, 0]), lambda s: np.abs(s).sum()),
}


@pytest.mark.parametrize("norm", sorted(CLOSED))
@pytest.mark.parametrize("model", ["matrix", "callables"])
def test_every_number_of_a_record(model, norm):
    sharpness, dual, step, length = CLOSED[norm]
    problem = MatrixProblem(H) if model == "matrix" else CallablesProblem(loss, gradient, {"x": W})
    monitor = Monitor(problem, norm, lr=LR, every=5)
    assert monitor.observe(4, {"x": W}, {"x": W + step}) is None
    record = monitor.observe(5, {"x": W}, {"x": W + step})
    bend = step @ H @ step / length(step) ** 2
    # Central differences of a linear gradient err by ε^⅔; the tracked λ_max by its residual, 0.02,
    # squared. D loses digits where two losses nearly cancel: 1e-16 of 10 over ‖s‖².
    value = 4e-4 if norm == "l2" else 1e-8
    assert record.sharpness == pytest.approx(sharpness, rel=value)
    assert record.loss == pytest.approx(0.5 * W @ H @ W, rel=1e-14)
    assert record.dual_norm == pytest.approx(dual, rel=1e-14)
    assert record.directional_smoothness == pytest.approx(bend, rel=1e-10)
    assert record.curvature == pytest.approx(bend, rel=1e-9)
    assert record.threshold == pytest.approx(2 / LR, rel=1e-15)
    assert record.ratio == pytest.approx(sharpness * LR / 2, rel=value)
    assert (record.step, record.lr, note(record)) == (5, LR, "")
    assert record.bound in ("EXACT", "LOWER")
    assert math.isnan(record.upper)
    assert record.seconds > 0
    assert monitor.records == [record]


@pytest.mark.parametrize("norm", ["l2", "linf", "block"])
@pytest.mark.parametrize("certificate", [False, True])
def test_every_product_is_counted(norm, certificate):
    asked = []

    class Counting(CallablesProblem):
        def at(self, params=None):
            oracle = super().at(params)
            product = oracle.hvp
            oracle.hvp = lambda d: asked.append(1) or product(d)
            return oracle

    problem = Counting(loss, gradient, {"x": W})
    problem.at().hvp({"x": W})  # of the first product it is checked that they are symmetric
    monitor = Monitor(problem, norm, lr=LR, every=1, certificate=certificate, max_hvps=60)
    for step in range(3):
        asked.clear()
        record = monitor.observe(step, {"x": W}, {"x": 0.9 * W})
        assert record.num_hvps == len(asked) > 1
        assert math.isfinite(record.sharpness)


def test_a_certificate_stands_above():
    problem = CallablesProblem(loss, gradient, {"x": W})
    monitor = Monitor(problem, "linf", lr=LR, every=1, certificate=True, max_hvps=100)
    record = monitor.observe(0, {"x": W}, {"x": 0.9 * W})
    assert record.upper >= 5.5 * (1 - 1e-6)  # the trace; differences err by ε^⅔
    assert record.upper < 1.1 * 5.5


class TestThreshold:
    """Against the formulas, written out."""

    def record(self, norm="l2", **keywords):
        monitor, w = pair(norm=norm, **{"lr": None} | keywords)
        return run(monitor, w, steps=1)[0]

    @pytest.mark.parametrize(
        ("update", "expected"),
        [
            (Update(LR), 2 / LR),
            (Update(LR, momentum=0.9), 2 * 1.9 / LR),
            (Update(LR, momentum=0.9, nesterov=True), 2 * 1.9 / 2.8 / LR),
            (Update(LR, momentum=0.9, ema=True), 2 * 1.9 / 0.1 / LR),
            (Update(LR, weight_decay=0.5), 2 / LR - 0.5),
            (Update(LR, weight_decay=0.5, decoupled=True), 2 / LR - 0.5),
            (Update(LR, normalized=True), 2 * np.linalg.norm(G) / LR),
        ],
    )
    def test_of_an_update(self, update, expected):
        record = self.record(update=update)
        assert record.threshold == pytest.approx(expected, rel=1e-12)
        assert record.ratio == pytest.approx(4.0 / expected, rel=4e-4)
        assert (record.lr, note(record)) == (LR, "")

    def test_of_a_normalized_method_in_its_own_norm(self):
        record = self.record("linf", update=Update(LR, normalized=True))
        assert record.threshold == pytest.approx(2 * np.abs(G).sum() / LR, rel=1e-12)

    def test_of_a_schedule(self):
        monitor, w = pair(lr=lambda step: 0.1 / (1 + step))
        records = run(monitor, w)
        assert [r.lr for r in records] == [0.1, 0.05, 0.1 / 3]
        assert [r.threshold for r in records] == pytest.approx([20, 40, 60], rel=1e-12)

    def test_of_a_rule_that_changes(self):
        monitor, w = pair(lr=None, update=lambda step: Update(LR, momentum=0.1 * step))
        records = run(monitor, w)
        assert [r.threshold for r in records] == pytest.approx([20, 22, 24], rel=1e-12)

    @pytest.mark.parametrize(
        ("norm", "keywords", "reason"),
        [
            ("l2", {}, "neither lr= nor update="),
            ("linf", {"update": Update(LR, momentum=0.9)}, "quadratic norms only"),
            ("linf", {"update": Update(LR, weight_decay=0.1)}, "quadratic norms only"),
            ("linf", {"update": Update(LR, momentum=0.9, normalized=True)}, "none established"),
            ("l2", {"update": Update(LR, unknown="SGD does not live in l1")}, "not live in l1"),
            ("l2", {"update": Update(1.0, weight_decay=5.0)}, "not above 0"),
            ("l2", {"lr": lambda step: 0.0}, "lr must be positive"),
            ("l2", {"lr": lambda step: "x"}, "could not convert"),
            ("l2", {"lr": lambda step: 1 / 0}, "ZeroDivisionError"),
            ("l2", {"update": lambda step: 0.1}, "must return an Update"),
        ],
    )
    def test_is_not_known_for_a_reason(self, norm, keywords, reason):
        record = self.record(norm, **keywords)
        assert reason in record.note
        assert math.isnan(record.threshold)
        assert math.isnan(record.ratio)
        assert record.sharpness == pytest.approx(CLOSED[norm][0], rel=4e-4)
        assert math.isfinite(record.directional_smoothness)


class TestFlow:
    def test_a_step_that_was_not_seen(self):
        monitor, _ = pair()
        monitor.before(0)
        monitor.before(1)
        monitor.abandon()
        monitor.abandon()
        assert monitor.after() is None
        assert [r.step for r in monitor.records] == [0, 1]
        for record in monitor.records:
            assert note(record) == "the step was not observed"
            assert math.isnan(record.directional_smoothness)
            assert record.sharpness == pytest.approx(4.0, rel=4e-4)

    def test_a_loop_that_raises_leaves_its_last_record(self, tmp_path):
        monitor, _ = pair(log=tmp_path / "run.csv")
        monitor.before(0)
        with pytest.raises(ZeroDivisionError), monitor:
            1 / 0  # noqa: B018
        assert [note(r) for r in read_records(tmp_path / "run.csv")] == [
            "the step was not observed"
        ]

    def test_closed_it_does_nothing(self):
        monitor, _ = pair()
        monitor.close()
        monitor.close()
        assert not monitor.due(0)
        monitor.before(0)
        assert monitor.after() is None
        assert monitor.records == []

    @pytest.mark.parametrize("own", [True, False])
    def test_a_problem_is_closed_by_who_made_it(self, own, monkeypatch):
        closed = []
        monkeypatch.setattr(MatrixProblem, "close", lambda self: closed.append(1))
        Monitor(H if own else MatrixProblem(H)).close()
        assert closed == [1] * own

    def test_the_step_may_be_any_integer(self, tmp_path):
        monitor, _ = pair(log=tmp_path / "run.jsonl")
        monitor.observe(np.int64(3), {"x": W}, {"x": 0.9 * W})
        assert read_records(tmp_path / "run.jsonl")[0].step == 3


def test_a_measurement_leaves_no_trace():
    monitor, w = pair(norm="linf")
    before = copy.deepcopy(w), np.random.get_state()[1].tolist(), random.getstate()
    monitor.before(0)
    assert np.array_equal(w["x"], before[0]["x"])
    w["x"] -= LR * G  # in place: the monitor must have a copy of the point
    after = w["x"].copy()
    record = monitor.after()
    assert np.array_equal(w["x"], after)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    step = -LR * G
    bend = step @ H @ step / np.abs(step).max() ** 2
    assert record.directional_smoothness == pytest.approx(bend, rel=1e-10)


def test_the_point_is_copied_where_the_problem_keeps_no_copy():
    monitor, w = Monitor(H, lr=LR, every=1), {"x": W.copy()}
    monitor.before(0, w)
    w["x"] -= LR * G
    record = monitor.after(w)
    assert record.directional_smoothness == pytest.approx(G @ H @ G / (G @ G), rel=1e-10)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": "0.1"},
        {"lr": 0.1, "update": Update(0.1)},
        {"update": 0.1},
        {"update": Update(0.0)},
        {"update": Update(0.1, nesterov=True)},
        {"every": 0},
        {"every": 1.5},
        {"every": True},
        {"budget": 0.0},
        {"budget": 1.0},
        {"budget": "x"},
        {"log": "run.txt"},
        {"log": 3},
        {"estimator": "no such"},
        {"estimator": 3},
        {"max_hvps": 1},
        {"rtol": 2.0},
        {"seed": -1},
        {"norm": "no such"},
        {"norm": 3},
        {"norm": "preconditioned"},
        {"norm": geodiag.norms.ByParameter({"y": geodiag.norms.L2()})},
        {"shapes": {"x": (2,)}},
        {"data": 1},
    ],
    ids=repr,
)
def test_wrong_arguments_raise_at_once(arguments):
    with pytest.raises(GeodiagError):
        Monitor(H, **arguments)
