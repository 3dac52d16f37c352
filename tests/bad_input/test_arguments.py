"""Bad input that the core alone can show: one clear error each, and nothing modified.

Each row: what is called, the error, and words that the message must hold: what was got, what to do.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg

import geodiag
from geodiag import estimators, norms
from geodiag.errors import (
    ArgumentError,
    LossError,
    MatrixError,
    NonFiniteError,
    NormError,
    ParameterError,
    ShapeError,
    UnknownEstimator,
    UnknownModel,
    UnknownNorm,
)
from geodiag.oracles import MatrixProblem
from geodiag.records.runs import columns_of

EYE = np.eye(3)
SKEW = np.array([[0.0, 1.0], [0.0, 0.0]])
QUADRATIC = (lambda w: np.sum(w["x"] ** 2) / 2, lambda w: {"x": w["x"]})
POINT = {"x": np.ones(3)}


def run(model=EYE, norm="l2", **keywords):
    return geodiag.sharpness(model, norm, **keywords)


def operator(matvec, n=3, dtype=np.float64):
    return scipy.sparse.linalg.LinearOperator((n, n), matvec=matvec, dtype=dtype)


class WrongShape(geodiag.Norm):
    def value(self, d):
        return np.max(np.abs(d["x"]))

    def lmo(self, g):
        return {"x": np.ones(7)}


class WrongNames(WrongShape):
    def lmo(self, g):
        return {"y": g["x"]}


class NumberOfBlocks(WrongShape):
    def lmo(self, g):
        return g["x"]


class PythonValue(WrongShape):
    def value(self, d):
        return 1.0 if isinstance(d, dict) else 0.0

    def lmo(self, g):
        return g


class VectorValue(PythonValue):
    def value(self, d):
        return np.abs(d["x"])


class NotFinite(PythonValue):
    def value(self, d):
        return np.max(np.abs(d["x"]))

    def lmo(self, g):
        return {"x": np.full(3, np.nan)}


BAD = {
    "unknown model": (
        lambda: run({"a": 1}),
        UnknownModel,
        ["Got: builtins.dict", "torch.nn.Module", "must be installed and imported"],
    ),
    "unknown norm": (
        lambda: run(norm="spectrl"),
        UnknownNorm,
        ["'spectrl'", "mean 'spectral'"],
    ),
    "a norm class": (lambda: run(norm=norms.L2), ArgumentError, ["the class L2", "L2()"]),
    "a norm that is none": (
        lambda: run(norm=3),
        ArgumentError,
        ["norm= takes a Norm", "Got: 3"],
    ),
    "unknown estimator": (lambda: run(estimator="lancos"), UnknownEstimator, ["'lanczos'"]),
    "an estimator class": (
        lambda: run(estimator=estimators.Ascent),
        ArgumentError,
        ["estimator="],
    ),
    "asymmetric": (lambda: run(SKEW), MatrixError, ["largest |H − Hᵀ| = 1", "(H + Hᵀ)/2"]),
    "not square": (lambda: run(np.ones((2, 3))), MatrixError, ["square", "Got: shape (2, 3)"]),
    "a vector": (lambda: run(np.ones(3)), MatrixError, ["Got: shape (3,)"]),
    "an empty matrix": (lambda: run(np.ones((0, 0))), MatrixError, ["Got: shape (0, 0)"]),
    "complex": (lambda: run(EYE * 1j), MatrixError, ["must be real", "complex128"]),
    "boolean": (lambda: run(EYE > 0), MatrixError, ["must be real", "bool"]),
    "NaN in a matrix": (lambda: run(EYE * np.nan), MatrixError, ["NaN or infinity"]),
    "asymmetric operator": (
        lambda: run(operator(lambda v: np.roll(v.ravel(), 1))),
        MatrixError,
        ["⟨Hu, v⟩ − ⟨u, Hv⟩", "symmetric LinearOperator"],
    ),
    "complex operator": (
        lambda: run(operator(lambda v: v, dtype=np.complex128)),
        MatrixError,
        ["must be real"],
    ),
    "NaN operator": (
        lambda: run(operator(lambda v: v * np.nan)),
        MatrixError,
        ["returns NaN or infinity"],
    ),
    "shapes of another size": (
        lambda: run(shapes={"W": (2, 2)}),
        ShapeError,
        ["4 entries in all, the matrix acts on 3", "add up"],
    ),
    "shapes that are none": (lambda: run(shapes=[3]), ShapeError, ["dict of name → shape"]),
    "muon without a matrix": (
        lambda: run(norm="muon"),
        NormError,
        ["at least one matrix", "Got: x: (3,)", "'l2' or 'linf'"],
    ),
    "preconditioned by name": (
        lambda: run(norm="preconditioned"),
        NormError,
        ["needs its preconditioner P", "geodiag.norms.Preconditioned(P)"],
    ),
    "lmo of a wrong shape": (
        lambda: run(norm=WrongShape()),
        NormError,
        ["lmo(g) of WrongShape()", "expected (3,)", "Got: (7,)"],
    ),
    "lmo of wrong names": (lambda: run(norm=WrongNames()), NormError, ["missing 'x'", "'y'"]),
    "lmo that is no blocks": (
        lambda: run(norm=NumberOfBlocks()),
        NormError,
        ["must be blocks (a dict of arrays)", "ndarray"],
    ),
    "value that is no array": (
        lambda: run(norm=PythonValue()),
        NormError,
        ["value(d) of PythonValue() must be a 0-d array", "float"],
    ),
    "value that is a vector": (lambda: run(norm=VectorValue()), NormError, ["of shape (3,)"]),
    "lmo that is NaN": (lambda: run(norm=NotFinite()), NormError, ["finite", "check_norm"]),
    "start of another shape": (
        lambda: run(start={"x": np.ones(4)}),
        ShapeError,
        ["start has a wrong shape at 'x': expected (3,)", "Got: (4,)"],
    ),
    "start of other names": (lambda: run(start={"y": np.ones(3)}), ShapeError, ["missing 'x'"]),
    "start that is no blocks": (
        lambda: run(start=np.ones(3)),
        ShapeError,
        ["start must be blocks"],
    ),
    "a zero start": (lambda: run(start={"x": np.zeros(3)}), ArgumentError, ["not zero"]),
    "a NaN start": (lambda: run(start={"x": EYE[0] * np.nan}), ArgumentError, ["finite"]),
    "step of another shape": (
        lambda: geodiag.directional_smoothness(EYE, {"x": np.ones(2)}),
        ShapeError,
        ["step has a wrong shape at 'x': expected (3,)"],
    ),
    "a zero step": (
        lambda: geodiag.directional_smoothness(EYE, {"x": np.zeros(3)}),
        ArgumentError,
        ["nothing moved", "w⁺ − w"],
    ),
    "lr = 0": (lambda: geodiag.threshold(0.0), ArgumentError, ["lr must be positive", "0.0"]),
    "lr < 0": (lambda: geodiag.threshold(-1e-3), ArgumentError, ["-0.001"]),
    "rtol = 0": (lambda: run(rtol=0.0), ArgumentError, ["between 0 and 1", "0.0"]),
    "rtol = 1": (lambda: run(rtol=1.0), ArgumentError, ["between 0 and 1"]),
    "rtol NaN": (lambda: run(rtol=float("nan")), ArgumentError, ["nan"]),
    "max_hvps = 1": (lambda: run(max_hvps=1), ArgumentError, ["at least 2", "one certifies"]),
    "max_hvps a float": (lambda: run(max_hvps=10.0), ArgumentError, ["integer", "10.0"]),
    "a pattern without match": (
        lambda: run(QUADRATIC, params=POINT, where="bias"),
        ParameterError,
        ["'bias' matches no parameter", "Got: parameters x"],
    ),
    "an invalid pattern": (
        lambda: run(QUADRATIC, params=POINT, where="("),
        ArgumentError,
        ["not a regular expression", "'('"],
    ),
    "a predicate without match": (
        lambda: run(QUADRATIC, params=POINT, where=lambda name, x: False),
        ParameterError,
        ["matches no parameter"],
    ),
    "a norm's pattern without match": (
        lambda: run(norm=norms.ByParameter({"weight": norms.L2(), ".": norms.L1()})),
        ParameterError,
        ["'weight' matches no parameter", "parameters x"],
    ),
    "callables without params": (lambda: run(QUADRATIC), ArgumentError, ["params=, the point"]),
    "integer parameters": (
        lambda: run(QUADRATIC, params={"x": np.ones(3, int)}),
        ParameterError,
        ["params['x']", "int64", "float64"],
    ),
    "complex parameters": (
        lambda: run(QUADRATIC, params={"x": np.ones(3) * 1j}),
        ParameterError,
        ["complex128"],
    ),
    "a list as parameters": (
        lambda: run(QUADRATIC, params={"x": [1.0]}),
        ParameterError,
        ["params['x'] must be an array", "list"],
    ),
    "a loss that is a vector": (
        lambda: run((lambda w: w["x"], QUADRATIC[1]), params=POINT),
        LossError,
        ["must be a scalar", "shape (3,)"],
    ),
    "a gradient of another shape": (
        lambda: run((QUADRATIC[0], lambda w: {"x": np.ones(2)}), params=POINT),
        ShapeError,
        ["the gradient has a wrong shape at 'x'"],
    ),
    "a loss that is NaN": (
        lambda: run((lambda w: np.float64("nan"), QUADRATIC[1]), params=POINT),
        NonFiniteError,
        ["the loss is not finite"],
    ),
    "a gradient that is infinite": (
        lambda: run((QUADRATIC[0], lambda w: {"x": np.array([1.0, np.inf, 1.0])}), params=POINT),
        NonFiniteError,
        ["the gradient is not finite", "at 'x' (1 of 3 entries)"],
    ),
    "a problem of an oracle": (
        lambda: geodiag.problem(MatrixProblem(EYE).at()),
        ArgumentError,
        ["already frozen", "Problem it came from"],
    ),
    "too few products for a certificate": (
        lambda: run(certificate=True, max_hvps=11),
        ArgumentError,
        ["at least 12 products", "max_hvps=11"],
    ),
}


@pytest.mark.parametrize("row", BAD)
def test_one_clear_error(row):
    call, error, words = BAD[row]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, geodiag.GeodiagError)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)


def test_errors_keep_their_three_parts():
    with pytest.raises(ArgumentError) as caught:
        geodiag.threshold(-1.0)
    assert (caught.value.what, caught.value.got) == ("lr must be positive and finite", "-1.0")
    assert isinstance(caught.value, ValueError)


def test_nothing_is_modified_when_it_works_and_when_it_raises():
    H = np.diag([1.0, 2.0, 3.0])
    point, start = {"x": np.ones(3)}, {"x": np.arange(1.0, 4.0)}
    before = H.copy(), point["x"].copy(), start["x"].copy(), np.random.get_state()[1].copy()
    for norm in ("l2", "linf", "spectral", "l1"):
        run(H, norm, start=start)
        run(QUADRATIC, norm, params=point, start=start)
        geodiag.directional_smoothness(QUADRATIC, start, norm, params=point)
    with pytest.raises(NormError):
        run(H, WrongShape(), start=start)
    with pytest.raises(NonFiniteError):
        run((QUADRATIC[0], lambda w: {"x": w["x"] * np.nan}), params=point, start=start)
    after = H, point["x"], start["x"], np.random.get_state()[1]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_array_of_no_dimensions_is_no_list(xp):
    """Most are of a class that can be iterated over."""
    with pytest.raises(ArgumentError, match="a plot is of records"):
        geodiag.plot(xp.asarray(0.1))
    with pytest.raises(ArgumentError, match="a table is of records"):
        columns_of(xp.asarray(0.1))
