"""The core's oracles pass ``check_oracle``, and faulty ones are caught by what broke."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg

import geodiag
from geodiag.errors import EngineError, NonFiniteError, ShapeError
from geodiag.oracles import CountingOracle, MatrixOracle, MatrixProblem
from geodiag.testing import check_oracle
from tests import truth

H = truth.symmetric(8, 0)
SHAPES = {"W": (2, 3), "b": (2,)}
POINT = truth.blocks(1, SHAPES)

PAIR = (
    lambda w: np.sum(np.cosh(w["W"])) + np.sum(w["b"] ** 4) + w["W"][0, 0] * w["b"][1],
    lambda w: {
        "W": np.sinh(w["W"]) + w["b"][1] * (np.arange(6).reshape(2, 3) == 0),
        "b": 4 * w["b"] ** 3 + np.array([0.0, 1.0]) * w["W"][0, 0],
    },
)


@pytest.mark.parametrize("at", [None, POINT], ids=["at zero", "elsewhere"])
def test_matrices(at, xp, dtype):
    problem = MatrixProblem(xp.asarray(H, dtype=getattr(xp, dtype)), SHAPES)
    check_oracle(problem.at(None if at is None else truth.to(xp, at, dtype)))


def test_operators_pairs_and_counts():
    op = scipy.sparse.linalg.aslinearoperator(H)
    check_oracle(MatrixProblem(op, SHAPES).at(POINT))
    check_oracle(geodiag.problem(PAIR, params=POINT).at())
    check_oracle(CountingOracle(MatrixProblem(H).at()))


class Faulty(MatrixOracle):
    """The quadratic at POINT, with answers spoilt by a subclass."""

    def __init__(self):
        super().__init__(lambda x: H @ x, MatrixProblem(H, SHAPES).space, POINT)


def noisy(x):
    return x * (1 + 1e-12 * np.random.default_rng().standard_normal())


class RandomLoss(Faulty):
    def loss_at(self, params):
        return noisy(super().loss_at(params))


class RandomProduct(Faulty):
    def hvp(self, d):
        return {n: noisy(x) for n, x in super().hvp(d).items()}

    def gradient(self):
        return super().hvp(POINT)


class MovingPoint(Faulty):
    """The parameters change as it is asked: the optimizer has stepped."""

    def gradient_at(self, params):
        self._point = {n: x + 1e-3 for n, x in self._point.items()}
        return super().gradient_at(params)


class Nonlinear(Faulty):
    def hvp(self, d):
        return {n: x + x**3 for n, x in super().hvp(d).items()}


class Normalised(Faulty):
    def hvp(self, d):
        size = np.sqrt(truth.inner(d, d)) or 1.0
        return {n: x / size for n, x in super().hvp(d).items()}


class Asymmetric(Faulty):
    def hvp(self, d):
        image = super().hvp(d)
        return image | {"b": image["b"] + d["W"][0, :2]}


class HalfProduct(Faulty):
    def hvp(self, d):
        return {n: x / 2 for n, x in super().hvp(d).items()}

    def gradient_at(self, params):
        return Faulty().gradient_at(params)

    def gradient(self):
        return Faulty().gradient()

    def loss_at(self, params):
        return Faulty().loss_at(params)


class SummedGradient(Faulty):
    """The gradient of the sum beside the loss of the mean."""

    def gradient_at(self, params):
        return {n: 4 * x for n, x in super().gradient_at(params).items()}

    def gradient(self):
        return self.gradient_at(POINT)


class OtherBatchLoss(Faulty):
    def loss(self):
        return super().loss() * 1.1


class OtherBatchGradient(Faulty):
    def gradient(self):
        return {n: 1.1 * x for n, x in super().gradient().items()}


class Swapped(Faulty):
    """Batched products come back in another order."""

    def hvps(self, ds):
        return {n: x[::-1] for n, x in super().hvps(ds).items()}


class FewRows(Faulty):
    def hvps(self, ds):
        return {n: x[:1] for n, x in super().hvps(ds).items()}


class VectorLoss(Faulty):
    def loss(self):
        return np.ones(3)


class PythonLoss(Faulty):
    def loss_at(self, params):
        return float(super().loss_at(params))


class NarrowProduct(Faulty):
    def hvp(self, d):
        return {n: np.asarray(x, np.float32) for n, x in super().hvp(d).items()}

    def gradient(self):
        return Faulty().gradient()

    def gradient_at(self, params):
        return Faulty().gradient_at(params)

    def loss_at(self, params):
        return Faulty().loss_at(params)


class MissingName(Faulty):
    def gradient(self):
        return {"W": super().gradient()["W"]}


class WrongShape(Faulty):
    def hvp(self, d):
        return {n: x.ravel() for n, x in super().hvp(d).items()}

    def gradient(self):
        return Faulty().gradient()

    def gradient_at(self, params):
        return Faulty().gradient_at(params)

    def loss_at(self, params):
        return Faulty().loss_at(params)


class NaNProduct(WrongShape):
    def hvp(self, d):
        return {n: x * np.nan for n, x in Faulty().hvp(d).items()}


class NaNLoss(Faulty):
    def loss(self):
        return np.float64("nan")


class IntegerPoint(Faulty):
    def point(self):
        return {n: np.ones(s, int) for n, s in SHAPES.items()}


FAULTS = [
    (RandomLoss, EngineError, r"loss.* gives another answer to the same question"),
    (RandomProduct, EngineError, r"hvp\(d\) gives another answer|gradient_at\(w\) gives another"),
    (MovingPoint, EngineError, r"point\(\) gives another answer|gradient\(\) gives another"),
    (Nonlinear, EngineError, "hvp is not linear"),
    (Normalised, EngineError, "hvp is not linear"),
    (Asymmetric, EngineError, "hvp is not symmetric"),
    (HalfProduct, EngineError, "hvp is not the derivative of gradient_at"),
    (SummedGradient, EngineError, "gradient is not the derivative of loss_at"),
    (OtherBatchLoss, EngineError, r"loss\(\) must be loss_at\(point\(\)\)"),
    (OtherBatchGradient, EngineError, r"gradient\(\) must be gradient_at\(point\(\)\)"),
    (Swapped, EngineError, r"hvps\(ds\) must be hvp\(d\) row by row"),
    (FewRows, ShapeError, "hvps must give a row for each. Got: 1 rows"),
    (VectorLoss, ShapeError, r"loss\(\) of VectorLoss must be a 0-d array"),
    (PythonLoss, ShapeError, r"loss\(\) of PythonLoss must be a 0-d array.*float"),
    (NarrowProduct, ShapeError, r"hvp\(\) of NarrowProduct must keep the arrays' .*dtype at 'W'"),
    (MissingName, ShapeError, r"gradient\(\) of MissingName.*names.*missing 'b'"),
    (WrongShape, ShapeError, r"hvp\(\) of WrongShape has a wrong shape at 'W'"),
    (NaNProduct, NonFiniteError, r"hvp\(\) of NaNProduct is not finite"),
    (NaNLoss, NonFiniteError, r"loss\(\) of NaNLoss is not finite"),
    (IntegerPoint, ShapeError, "one real floating dtype"),
]


@pytest.mark.parametrize(("fault", "error", "said"), FAULTS)
def test_each_fault_is_named(fault, error, said):
    with pytest.raises(error, match=said) as caught:
        check_oracle(fault())
    assert type(caught.value) is error


def test_the_unspoilt_oracle_passes():
    check_oracle(Faulty())
    check_oracle(Faulty(), seed=5)
