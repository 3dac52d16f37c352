"""``check_norm`` catches each fault, and its message says which property broke."""

from __future__ import annotations

import numpy as np
import pytest

from geodiag import norms
from geodiag.errors import ArgumentError, NormError
from geodiag.norms import FromFunctions, QuadraticNorm
from geodiag.testing import check_norm

EXAMPLE = {"W": np.ones((2, 3)), "b": np.ones(2)}


def entries(d):
    return np.concatenate([x.ravel() for x in d.values()])


def each(f):
    return lambda d: {n: f(x) for n, x in d.items()}


linf, l1, l2 = norms.Linf(), norms.L1(), norms.L2()
spectral = norms.Spectral()
block = norms.SumOver(norms.L2())


def made(value=linf.value, lmo=linf.lmo, dual=None):
    return FromFunctions(value, lmo, dual, name="faulty")


def per_tensor_alone(g):
    """Each tensor's own best for a sum of norms: outside of the joint ball."""
    return {n: x / max(np.linalg.norm(x), 1e-300) for n, x in g.items()}


def shared_among_tensors(g):
    """Inside the ball of the sum, but spread over all tensors where one should move alone."""
    return {n: x / len(g) for n, x in per_tensor_alone(g).items()}


def largest_tensor_only(g):
    """The max norm lets all tensors move: this moves one."""
    best = max(g, key=lambda n: np.abs(g[n]).sum())
    return {n: np.sign(x) * (n == best) for n, x in g.items()}


def root_quasi_norm(d):
    return np.sum(np.sqrt(np.abs(entries(d)))) ** 2


def largest_entry(g):
    """Forgets the sign: maximises g_i, not |g_i|."""
    flat = entries(g)
    d = np.zeros_like(flat)
    d[np.argmax(flat)] = 1.0
    return {"W": d[:6].reshape(2, 3), "b": d[6:]}


def in_place(g):
    for x in g.values():
        np.sign(x, out=x)
    return dict(g)


def counting(f):
    calls = []

    def g(d):
        calls.append(1)
        return f(d, len(calls))

    return g


def thresholded(g):
    """An absolute threshold makes it depend on the scale of g."""
    return {n: np.where(np.abs(x) > 1e-2, np.sign(x), 0.0) for n, x in g.items()}


NOT_OPTIMAL = "lmo(g) does not maximise ⟨g, d⟩"
OUTSIDE = "lmo(g) leaves the unit ball"

FAULTS = {
    "l2's LMO for linf": (made(lmo=l2.lmo), NOT_OPTIMAL),
    "linf's LMO for l2": (made(l2.value, linf.lmo), OUTSIDE),
    "linf's LMO for l1": (made(l1.value, linf.lmo), OUTSIDE),
    "nuclear's LMO for spectral": (made(spectral.value, norms.Nuclear().lmo), NOT_OPTIMAL),
    "frobenius' LMO for spectral": (made(spectral.value, norms.Frobenius().lmo), NOT_OPTIMAL),
    "sign flipped": (made(lmo=each(lambda x: -np.sign(x))), NOT_OPTIMAL),
    "sign forgotten": (made(l1.value, largest_entry), NOT_OPTIMAL),
    "half radius": (made(lmo=each(lambda x: np.sign(x) / 2)), NOT_OPTIMAL),
    "one part in a thousand short": (made(lmo=each(lambda x: 0.999 * np.sign(x))), NOT_OPTIMAL),
    "one part in a million long": (made(lmo=each(lambda x: 1.000001 * np.sign(x))), OUTSIDE),
    "per tensor for a sum": (made(block.value, per_tensor_alone), OUTSIDE),
    "shared for a sum": (made(block.value, shared_among_tensors), NOT_OPTIMAL),
    "one tensor for a max": (made(lmo=largest_tensor_only), NOT_OPTIMAL),
    "nothing moves": (made(lmo=each(np.zeros_like)), NOT_OPTIMAL),
    "squared": (made(lambda d: l2.value(d) ** 2, l2.lmo), "not absolutely homogeneous"),
    "signed": (made(lambda d: np.sum(entries(d))), "must be positive for d ≠ 0"),
    "one-sided": (
        made(lambda d: np.max(np.maximum(entries(d), -0.5 * entries(d)))),
        "not absolutely homogeneous",
    ),
    "an offset": (made(lambda d: l2.value(d) + 1.0), "not absolutely homogeneous"),
    "p = 1/2": (made(root_quasi_norm), "breaks the triangle inequality"),
    "a tensor forgotten": (
        made(lambda d: np.max(np.abs(d["W"]))),
        "must be positive for d ≠ 0",
    ),
    "a wrong dual": (made(dual=linf.value), "dual(g) must equal ⟨g, lmo(g)⟩"),
    "a dual of another shape": (made(dual=entries), "dual(g) of faulty must be a 0-d array"),
    "an absolute threshold": (made(lmo=thresholded), "lmo(c·g) must be as good as lmo(g)"),
    "NaN at zero": (
        made(l2.value, lambda g: each(lambda x: x / l2.value(g))(g)),
        "lmo(g) of faulty is not finite",
    ),
    "modified in place": (made(lmo=in_place), "lmo(g) modifies its input in place"),
    "random LMO": (
        made(lmo=counting(lambda g, k: each(lambda x: np.sign(x) / (1 + k % 2))(g))),
        "lmo(g) is not deterministic",
    ),
    "random value": (
        made(value=counting(lambda d, k: linf.value(d) * (1 + k % 2))),
        "value(d) is not deterministic",
    ),
    "a Python number": (made(lambda d: 1.0), "value(d) of faulty must be a 0-d array"),
    "a vector": (made(entries), "value(d) of faulty must be a 0-d array"),
    "an infinite value": (made(lambda d: np.float64("inf")), "value(d) of faulty is not finite"),
    "half precision": (made(lambda d: np.float32(linf.value(d))), "0-d array of dtype float64"),
    "wrong names": (made(lmo=lambda g: {"W": g["W"]}), "missing 'b'"),
    "wrong shapes": (made(lmo=each(np.ravel)), "wrong shape at 'W'"),
    "another dtype": (
        made(lmo=each(lambda x: np.sign(x).astype(np.float32))),
        "must keep the arrays' framework and dtype at 'W'",
    ),
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(fault):
    norm, said = FAULTS[fault]
    with pytest.raises(NormError) as caught:
        check_norm(norm, EXAMPLE)
    assert said in str(caught.value)
    assert "faulty" in str(caught.value)


class Crooked(QuadraticNorm):
    """‖d‖² = 2‖d‖₂², with one of its maps spoilt."""

    def __init__(self, metric=2.0, inverse=0.5, shift=0.0):
        self.factors = metric, inverse
        self.shift = shift

    def metric(self, d):
        return {n: self.factors[0] * x + self.shift * np.roll(x, 1) for n, x in d.items()}

    def inverse_metric(self, g):
        return {n: self.factors[1] * x for n, x in g.items()}


class OtherValue(Crooked):
    def value(self, d):
        return super().value(d) * 1.01

    def lmo(self, g):
        return {n: x / 1.01 for n, x in super().lmo(g).items()}

    def dual(self, g):
        return super().dual(g) / 1.01


def test_quadratic_norms_have_maps_that_belong_together():
    check_norm(Crooked(), EXAMPLE)
    with pytest.raises(NormError, match=r"leaves the unit ball|does not maximise"):
        check_norm(Crooked(inverse=0.4), EXAMPLE)
    with pytest.raises(NormError, match="metric is not symmetric"):
        check_norm(AsymmetricOnly(), EXAMPLE)
    with pytest.raises(NormError, match="value does not belong to metric"):
        check_norm(OtherValue(), EXAMPLE)
    with pytest.raises(NormError, match="inverse_metric is not the inverse of metric"):
        check_norm(InverseOnly(), EXAMPLE)


class AsymmetricOnly(Crooked):
    """⟨d, Pd⟩ does not see a skew part of P: value, lmo and dual are right all the same."""

    def metric(self, d):
        skew = np.array([[0.0, 1.0], [-1.0, 0.0]])
        return super().metric(d) | {"b": 2.0 * d["b"] + skew @ d["b"]}


class InverseOnly(Crooked):
    """lmo and dual are overridden and right; inverse_metric, which Lanczos uses, is not."""

    def inverse_metric(self, g):
        return {n: 0.7 * x for n, x in g.items()}

    def lmo(self, g):
        return Crooked().lmo(g)

    def dual(self, g):
        return Crooked().dual(g)


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ([1.0], "must be blocks"),
        ({}, "must be blocks"),
        ({"W": [1.0]}, "must be blocks"),
        ({"W": np.ones(2, int)}, "one real floating dtype.*int64"),
        ({"W": np.ones(2, np.float16)}, "at least 32 bits.*float16"),
        ({"W": np.ones(2), "b": np.ones(2, np.float32)}, "float32, float64"),
    ],
)
def test_examples_that_cannot_be_used(example, said):
    with pytest.raises(NormError, match=said):
        check_norm(norms.L2(), example)


def test_a_class_is_no_norm():
    with pytest.raises(ArgumentError, match="check_norm takes a Norm object"):
        check_norm(norms.L2, EXAMPLE)


def test_the_example_is_left_as_it_was():
    example = {"W": np.arange(6.0).reshape(2, 3)}
    check_norm(norms.Spectral(), example)
    assert np.array_equal(example["W"], np.arange(6.0).reshape(2, 3))
