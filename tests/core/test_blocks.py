"""Arithmetic on blocks against NumPy on the concatenated vector, in every array namespace."""

from __future__ import annotations

import numpy as np
import pytest

from geodiag import blocks as bl
from geodiag.errors import NormError, ShapeError
from tests import truth

A, C = truth.blocks(0), truth.blocks(1)
N = 20  # entries of truth.SHAPES

# Sums and products of N = 20 numbers of order 1 in float64: 20·ε ≈ 4e-15 relative to Σ|terms|.
TOL = 1e-13


def test_reductions_are_those_of_the_joined_vector(xp):
    a, c = truth.to(xp, A), truth.to(xp, C)
    x, y = truth.flat(A), truth.flat(C)
    assert float(bl.dot(a, c)) == pytest.approx(
        float(x @ y), abs=TOL * float(np.abs(x) @ np.abs(y))
    )
    assert float(bl.norm2(a)) == pytest.approx(float(np.linalg.norm(x)), rel=TOL)
    assert bl.dot(a, c).shape == bl.norm2(a).shape == ()
    assert bl.size(a) == N == x.size


def test_dot_pairs_by_name_not_by_order(xp):
    a, c = truth.to(xp, A), truth.to(xp, C)
    turned = {name: c[name] for name in reversed(list(c))}
    assert float(bl.dot(a, turned)) == float(bl.dot(a, c))


@pytest.mark.parametrize(
    ("ours", "numpy"),
    [
        (lambda a, c: bl.add(a, c), lambda x, y: x + y),
        (lambda a, c: bl.subtract(a, c), lambda x, y: x - y),
        (lambda a, c: bl.scale(a, -2.5), lambda x, y: -2.5 * x),
        (lambda a, c: bl.axpy(0.5, a, c), lambda x, y: 0.5 * x + y),
        (lambda a, c: bl.zeros_like(a), lambda x, y: 0 * x),
    ],
    ids=["add", "subtract", "scale", "axpy", "zeros_like"],
)
def test_entrywise(xp, dtype, ours, numpy):
    a, c = truth.to(xp, A, dtype), truth.to(xp, C, dtype)
    got = ours(a, c)
    for name in A:
        assert got[name].dtype == a[name].dtype
        assert tuple(got[name].shape) == A[name].shape
        expected = numpy(A[name], C[name])
        # Casting both inputs, one product and one sum: four roundings of numbers below 10.
        np.testing.assert_allclose(
            np.asarray(got[name]), expected, rtol=0, atol=4 * 10 * np.finfo(dtype).eps
        )


def test_where_takes_one_side_whole(xp):
    a, c = truth.to(xp, A), truth.to(xp, C)
    for flag, expected in ((True, A), (False, C)):
        got = truth.back(bl.where(xp.asarray(flag), a, c))
        assert all(np.array_equal(got[name], expected[name]) for name in A)


def test_flatten_is_row_major_in_dict_order_and_unflatten_its_inverse(xp):
    vector = bl.flatten(truth.to(xp, A))
    assert np.array_equal(np.asarray(vector), truth.flat(A))
    again = truth.back(bl.unflatten(vector, truth.SHAPES))
    assert list(again) == list(A)
    assert all(np.array_equal(again[name], A[name]) for name in A)


def test_stack_and_unstack(xp):
    stacked = bl.stack([truth.to(xp, A), truth.to(xp, C)])
    for name in A:
        assert np.array_equal(np.asarray(stacked[name]), np.stack([A[name], C[name]]))
    first, second = map(truth.back, bl.unstack(stacked))
    assert all(np.array_equal(first[n], A[n]) and np.array_equal(second[n], C[n]) for n in A)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite(xp, bad):
    assert bool(bl.all_finite(truth.to(xp, A)))
    spoiled = A | {"a.b": np.array([0.0, bad, 0.0])}
    assert not bool(bl.all_finite(truth.to(xp, spoiled)))


def test_epsilon_is_of_the_dtype(xp, dtype):
    assert bl.epsilon(truth.to(xp, A, dtype)) == np.finfo(dtype).eps


def test_empty_tensors_add_nothing(xp):
    host = A | {"empty": np.zeros((0, 3))}
    a = truth.to(xp, host)
    assert bl.size(a) == N
    assert float(bl.norm2(a)) == float(bl.norm2(truth.to(xp, A)))
    assert bool(bl.all_finite(a))
    assert bl.unflatten(bl.flatten(a), {n: x.shape for n, x in host.items()})["empty"].shape == (
        0,
        3,
    )


def test_to_numpy_is_a_copy(xp):
    a = truth.to(xp, A)
    copy = bl.to_numpy(a["a.W"])
    copy[:] = 7.0
    assert np.array_equal(np.asarray(a["a.W"]), A["a.W"])


def test_namespace_and_device_come_from_the_arrays(xp):
    a = truth.to(xp, A)
    assert bl.namespace(a).asarray(1.0).__class__ is xp.asarray(1.0).__class__
    assert bl.device(a["z"]) == bl.device(a["a.W"])
    assert bl.is_array(a["z"])
    assert not bl.is_array([1.0])


def test_check_like_accepts_the_same_names_in_another_order():
    bl.check_like({n: A[n] for n in reversed(list(A))}, truth.SHAPES, "step")


@pytest.mark.parametrize(
    ("got", "said"),
    [
        ([1.0], r"step must be blocks \(a dict of arrays\). Got: list"),
        ({n: x for n, x in A.items() if n != "z"}, "missing 'z'; unexpected none"),
        (A | {"w": A["z"]}, "missing none; unexpected 'w'"),
        (A | {"a.b": np.zeros(4)}, r"wrong shape at 'a.b': expected \(3,\). Got: \(4,\)"),
        (A | {"a.b": 3.0}, r"wrong shape at 'a.b': expected \(3,\). Got: float"),
    ],
    ids=["not a dict", "missing", "unexpected", "shape", "not an array"],
)
def test_check_like_says_what_differs(got, said):
    with pytest.raises(ShapeError, match=said) as caught:
        bl.check_like(got, truth.SHAPES, "step")
    assert "a.W: (3, 4)" in str(caught.value)  # what to do names the shapes


def test_check_like_raises_the_error_asked_for():
    with pytest.raises(NormError):
        bl.check_like({}, truth.SHAPES, "lmo(g)", NormError)
