"""What the fuzz suite (tests/fuzz) has found in the core, one row each: a GeodiagError, no crash.

Every row raised another exception, gave a NumPy warning or returned a wrong answer once.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import geodiag
from geodiag import estimators, norms, testing
from geodiag.errors import (
    ArgumentError,
    GeodiagError,
    LossError,
    MatrixError,
    NonFiniteError,
    NormError,
    ParameterError,
    PluginError,
    ShapeError,
    shown,
)
from geodiag.oracles import MatrixProblem
from geodiag.plugins.manager import Registry
from tests.monitored import pair

EYE = np.eye(3)
RAGGED = [[1.0], [2.0, 3.0]]
POINT = {"x": np.ones(3)}


def deep():
    found = ()
    for _ in range(5000):
        found = (found,)
    return found


def own_list():
    found = []
    found.append(found)
    return found


def run(model=EYE, norm="l2", **keywords):
    return geodiag.sharpness(model, norm, **keywords)


def state(**changes):
    return run().state | changes


def quadratic(loss=lambda w: 1.0, gradient=lambda w: w, **keywords):
    return run((loss, gradient), **{"params": POINT} | keywords)


class Operator:
    """What looks like a SciPy operator."""

    def __init__(self, answer, shape=(3, 3), dtype=np.float64):
        self.shape, self.dtype, self.matvec = shape, dtype, lambda x: answer


WITNESS = {"x": [1.0, 0.0, 0.0]}
LAST = {"witness": WITNESS, "age": 0, "norm": "L2()"}


def restored(pace=(), last=LAST, **following):
    """A monitor that goes on from a state with these parts."""
    monitor, _ = pair()
    state = monitor.state_dict()
    whole = state["tracker"] | {"last": last, "ahead": WITNESS} | following
    monitor.load_state_dict(state | {"tracker": whole, "schedule": state["schedule"] | dict(pace)})
    return monitor


BAD = {
    "too deep to be shown": (lambda: run(norm=deep()), ArgumentError),
    "a seed that is true": (lambda: run(seed=True), ArgumentError),
    "progress that is an array": (lambda: run(progress=np.ones(2)), ArgumentError),
    "progress that is a class": (lambda: run(progress=geodiag.norms.L2), ArgumentError),
    "certificate that is a text": (lambda: run(certificate="no"), ArgumentError),
    "throw that is an array": (lambda: run(throw=np.ones(2)), ArgumentError),
    "reduction that is an array": (lambda: run(reduction=np.ones(2)), ArgumentError),
    "a start of texts": (lambda: run(start={"x": np.array(["a"] * 3)}), ShapeError),
    "a complex start": (lambda: run(start={"x": np.ones(3) * 1j}), ShapeError),
    "a masked start": (
        lambda: run(start={"x": np.ma.masked_array(np.ones(3), [1, 0, 0])}),
        ShapeError,
    ),
    "a start with names of any type": (lambda: run(start={1: EYE, None: EYE}), ShapeError),
    "a state with a witness that is none": (lambda: run(start=state(witness=len)), ArgumentError),
    "a state with a ragged witness": (
        lambda: run(start=state(witness={"x": RAGGED})),
        ArgumentError,
    ),
    "a state with an age that is none": (lambda: run(start=state(age="old")), ArgumentError),
    "a state with an age below 0": (lambda: run(start=state(age=-1)), ArgumentError),
    "shapes with a negative size": (lambda: run(shapes={"a": (-1, -3)}), ShapeError),
    "shapes with half a size": (lambda: run(shapes={"a": (1.5, 2.0)}), ShapeError),
    "a shape that is a text": (lambda: run(shapes={"a": "3"}), ShapeError),
    "shapes under numbers": (lambda: run(shapes={1: (3,)}), ShapeError),
    "a matrix of texts": (lambda: run(np.full((2, 2), "a")), MatrixError),
    "a matrix of bytes": (lambda: run(np.full((1, 1), b"a")), MatrixError),
    "a matrix of objects": (lambda: run(np.full((1, 1), None)), MatrixError),
    "a matrix of dates": (lambda: run(np.zeros((1, 1), "datetime64[s]")), MatrixError),
    "a masked matrix": (lambda: run(np.ma.masked_array(EYE, EYE)), MatrixError),
    "a sparse tensor": (lambda: run(torch.eye(3).to_sparse()), MatrixError),
    "a tensor without values": (lambda: run(torch.empty(2, 2, device="meta")), MatrixError),
    "an operator that returns None": (lambda: run(Operator(None)), MatrixError),
    "an operator that returns a number": (lambda: run(Operator(1.0)), MatrixError),
    "an operator that returns texts": (lambda: run(Operator(np.array(["a"] * 3))), MatrixError),
    "an operator of texts": (lambda: run(Operator(EYE, dtype="U3")), MatrixError),
    "an operator of no dtype": (lambda: run(Operator(EYE, dtype=object())), MatrixError),
    "an operator without a shape": (lambda: run(Operator(EYE, shape=len)), MatrixError),
    "a loss that is a type": (lambda: quadratic(lambda w: int), LossError),
    "a loss that is complex": (lambda: quadratic(lambda w: np.complex64(1j)), LossError),
    "a gradient of texts": (
        lambda: quadratic(gradient=lambda w: {"x": np.array(["a"] * 3)}),
        ShapeError,
    ),
    "a point under numbers": (lambda: quadratic(params={1: np.ones(3)}), ParameterError),
    "a point of two frameworks": (
        lambda: quadratic(params={"x": np.ones(3), "y": torch.ones(3)}),
        ParameterError,
    ),
    "where that answers an array": (
        lambda: quadratic(where=lambda name, x: np.ones(2)),
        ArgumentError,
    ),
    "where that is an array": (lambda: quadratic(where=np.ones(())), ArgumentError),
    "where of bytes": (lambda: quadratic(where=b"x"), ArgumentError),
    "where with a huge repeat": (lambda: quadratic(where="a{99999999999999999999}"), ArgumentError),
    "a radius that is an array": (
        lambda: run(norm=norms.MaxOver(norms.L2(), lambda name, shape: np.ones(2))),
        ArgumentError,
    ),
    "a radius beyond a float": (lambda: norms.Spectral(10**400), ArgumentError),
    "a radius whose square is 0": (lambda: run(norm=norms.MaxOver(norms.L2(), 1e200)), NormError),
    "a factor whose square is 0": (lambda: run(norm=norms.Scaled(norms.L2(), 1e-200)), NormError),
    "over= that is an array": (lambda: norms.ByParameter({".*": norms.L2()}, EYE), ArgumentError),
    "radii of ByParameter that are none": (
        lambda: norms.ByParameter({".*": norms.L2()}, radii=3),
        ArgumentError,
    ),
    "radii under keys of any type": (
        lambda: norms.ByParameter({".*": norms.L2()}, radii={1: 1.0, "a": 1.0}),
        ArgumentError,
    ),
    "Muon's rule that is a list": (lambda: norms.Muon([]), ArgumentError),
    "a diagonal of P that is a function": (
        lambda: run(norm=norms.Preconditioned({"x": len})),
        NormError,
    ),
    "a complex diagonal of P": (
        lambda: run(norm=norms.Preconditioned({"x": EYE[0] * 1j})),
        NormError,
    ),
    "a pair of P that is one": (lambda: run(norm=norms.Preconditioned({"x": (EYE,)})), NormError),
    "maps of P that answer arrays": (
        lambda: run(norm=norms.Preconditioned((lambda d: EYE, lambda g: EYE))),
        NormError,
    ),
    "a norm whose value is a text": (
        lambda: run(norm=norms.FromFunctions(lambda d: np.array("a"), lambda g: g)),
        NormError,
    ),
    "starts= that is true": (lambda: estimators.Ascent(starts=True), ArgumentError),
    "starts= that is an array": (lambda: estimators.Ascent(starts=np.ones(0)), ArgumentError),
    "iterations= that are complex": (lambda: estimators.FrankWolfe(1j), ArgumentError),
    "basis= that is a list": (lambda: estimators.Lanczos([]), ArgumentError),
    "an unhashable kind": (
        lambda: geodiag.directional_smoothness(EYE, POINT, kind={}),
        ArgumentError,
    ),
    "a step whose square is beyond a float": (
        lambda: geodiag.directional_smoothness(EYE, {"x": np.full(3, 1e300)}, kind="curvature"),
        GeodiagError,
    ),
    "a step of texts": (
        lambda: geodiag.directional_smoothness(EYE, {"x": np.array(["a"] * 3)}),
        ShapeError,
    ),
    "lr beyond a float": (lambda: geodiag.threshold(10**400), ArgumentError),
    "lr that is true": (lambda: geodiag.threshold(True), ArgumentError),
    "lr whose threshold is beyond a float": (lambda: geodiag.threshold(1e-320), ArgumentError),
    "normalized that is an array": (
        lambda: geodiag.threshold(0.1, normalized=np.ones(2)),
        ArgumentError,
    ),
    "an unhashable name of a norm": (lambda: Registry(lambda: ()).norm({}), ArgumentError),
    "a plugin that is an array": (lambda: geodiag.register(np.ones(0)), PluginError),
    "a plugin's name that is an array": (
        lambda: Registry(lambda: ()).register(norms, np.ones(2)),
        ArgumentError,
    ),
    "check_estimator of a text": (lambda: testing.check_estimator("ascent"), PluginError),
    "check_oracle of nothing": (lambda: testing.check_oracle(None), ShapeError),
    "check_norm over objects": (
        lambda: testing.check_norm(norms.L2(), {"x": np.full(2, None)}),
        NormError,
    ),
    "check_norm over two frameworks": (
        lambda: testing.check_norm(norms.L2(), {"x": np.ones(2), "y": torch.ones(2)}),
        NormError,
    ),
    "a log that holds itself": (lambda: pair(log=own_list()), ArgumentError),
    "a log with a NUL in its name": (lambda: pair(log="a\x00.jsonl"), ArgumentError),
    "a step that is a text": (lambda: pair()[0].before("one"), ArgumentError),
    "a step that is no number": (lambda: pair()[0].before(math.nan), ArgumentError),
    "a state that is a text": (lambda: pair()[0].load_state_dict("state"), ArgumentError),
    "a state with a witness that is a list": (
        lambda: restored(last=LAST | {"witness": [1.0]}),
        ArgumentError,
    ),
    "a state with an age that is a text": (
        lambda: restored(last=LAST | {"age": "1"}),
        ArgumentError,
    ),
    "a state with an account of NaN": (lambda: restored({"spent": math.nan}), ArgumentError),
    "a state with a step that is a text": (lambda: restored({"step": "1"}), ArgumentError),
    "a state with counts that are none": (lambda: restored(cold_after=0), ArgumentError),
    "a state with a value that is a text": (lambda: restored(value="1"), ArgumentError),
    "a state with a direction that is a list": (lambda: restored(ahead=[1.0]), ArgumentError),
    "a path that is an array": (lambda: geodiag.read_records(np.ones(2)), ArgumentError),
    "a path with a NUL": (lambda: geodiag.read_records("a\x00b"), ArgumentError),
    "a picture's path that is a function": (
        lambda: geodiag.plot([geodiag.Record(0)], len),
        ArgumentError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_a_geodiag_error(label):
    call, error = BAD[label]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, GeodiagError)
    assert str(caught.value)


def test_any_value_can_be_shown():
    assert shown(deep()) == "an object of type tuple"
    assert shown("a") == "'a'"
    assert len(shown("a" * 10**6)) < 400


def test_data_that_hold_themselves_are_not_followed_for_ever():
    with pytest.raises(GeodiagError):
        geodiag.problem(
            torch.nn.Linear(1, 1), data=(own_list(),), criterion=lambda *a: 1
        ).at().loss()


def test_numpy_warns_of_nothing():
    """What over- or underflows is an error, or the right answer; warnings are errors in tests."""
    huge = np.full((2, 2), 3e38, np.float32)
    with pytest.raises(NonFiniteError):
        run(huge)
    assert run(np.eye(2) * 1e308).value == pytest.approx(1e308)
    assert run(np.eye(2) * 1e-320).value == pytest.approx(1e-320, rel=1e-3)  # a subnormal number
    with np.errstate(all="raise"):
        assert run(np.diag([1.0, -5.0]), "linf").value == 1.0


def test_a_value_beyond_a_float_is_an_error():
    """⟨d, Hd⟩ overflows where Hd does not."""
    with pytest.raises(NonFiniteError):
        run(
            np.eye(2) * 1e155, norms.Scaled(norms.L1(), 1e-120), estimator="frank_wolfe", max_hvps=3
        )


def test_large_entries_do_not_overflow_when_a_matrix_is_made_symmetric():
    H = np.array([[1.0, 1.5e308], [1.5e308, 1.0]])
    oracle = MatrixProblem(H).at()
    H[:] = 0.0  # the problem has a copy
    assert oracle.hvp({"x": np.array([0.0, 1.0])})["x"].tolist() == [1.5e308, 1.0]


def test_small_integers_of_numpy_do_not_overflow():
    long = run(EYE, "linf", max_hvps=np.int8(100), seed=np.int8(3), estimator="ascent")
    assert long.value == run(EYE, "linf", max_hvps=100, seed=3, estimator="ascent").value


def test_a_budget_beyond_every_integer_is_no_budget():
    assert run(np.diag([3.0, 1.0]), "linf", max_hvps=10**30).value == pytest.approx(4.0)


def test_a_start_may_be_parameters():
    assert run(start={"x": torch.nn.Parameter(torch.ones(3))}).value == pytest.approx(1.0)


def test_a_state_goes_through_json():
    first = run(np.diag([3.0, 1.0, 2.0]), "linf")
    plain = json.loads(
        json.dumps(first.state | {"witness": {"x": first.state["witness"]["x"].tolist()}})
    )
    assert run(np.diag([3.0, 1.0, 2.0]), "linf", start=plain).value == first.value


def test_a_damaged_state_changes_nothing():
    monitor = restored()
    before = monitor.state_dict()
    assert before["tracker"]["last"] == LAST
    schedules = {}, {"spent": "1"}
    for wrong in ({"tracker": {"x": 1}}, {"version": 2}, *({"schedule": x} for x in schedules)):
        with pytest.raises(ArgumentError):
            monitor.load_state_dict(monitor.state_dict() | {"schedule": before["schedule"]} | wrong)
        assert monitor.state_dict() == before


@pytest.mark.parametrize("witness", [{"y": [1.0]}, {"x": [1.0, 2.0]}, {"x": [0.0] * 3}])
def test_a_state_of_another_model_is_left_out_once(witness):
    monitor = restored(last=LAST | {"witness": witness}, ahead=witness)
    w = {"x": np.array([1.0, 2.0, 3.0])}
    first, second = (monitor.observe(step, w, {"x": 0.9 * w["x"]}) for step in (0, 1))
    assert "the loaded state is of other parameters" in first.note
    assert "the loaded state" not in second.note
    # Differences of a linear gradient: off by rounding over their step, 1e-16/6e-6.
    assert first.sharpness == pytest.approx(4.0, rel=1e-3)
    assert second.sharpness == pytest.approx(4.0, rel=1e-3)


def test_errors_of_the_users_own_functions_go_through():
    class Own(Exception):
        pass

    def raises(*args):
        raise Own

    for call in (
        lambda: quadratic(raises),
        lambda: quadratic(gradient=raises),
        lambda: quadratic(where=raises),
        lambda: run(norm=norms.MaxOver(norms.L2(), raises), shapes={"a": (1,), "b": (2,)}),
        lambda: run(norm=norms.FromFunctions(raises, raises)),
        lambda: run(progress=raises),
    ):
        with pytest.raises(Own):
            call()
