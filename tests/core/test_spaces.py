"""Matrix views of kernels in both layouts, entry by entry, and the random draws of a space."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from geodiag.core.spaces import MatrixView, Space
from tests import truth

OUT, IN, KH, KW = 5, 3, 2, 4


def test_kernel_with_outputs_first(xp):
    x = np.random.default_rng(0).standard_normal((OUT, IN, KH, KW))
    view = MatrixView.first_axis_rows(4)
    m = np.asarray(view.to_matrix(xp.asarray(x)))
    assert view.shape(x.shape) == m.shape == (OUT, IN * KH * KW)
    for o, i, h, w in itertools.product(range(OUT), range(IN), range(KH), range(KW)):
        assert m[o, (i * KH + h) * KW + w] == x[o, i, h, w]


def test_kernel_with_outputs_last(xp):
    x = np.random.default_rng(1).standard_normal((KH, KW, IN, OUT))
    view = MatrixView.last_axis_rows(4)
    m = np.asarray(view.to_matrix(xp.asarray(x)))
    assert view.shape(x.shape) == m.shape == (OUT, KH * KW * IN)
    for h, w, i, o in itertools.product(range(KH), range(KW), range(IN), range(OUT)):
        assert m[o, (h * KW + w) * IN + i] == x[h, w, i, o]


@pytest.mark.parametrize(
    "view",
    [
        MatrixView.first_axis_rows(4),
        MatrixView.last_axis_rows(4),
        MatrixView((1, 3), (0, 2)),
        MatrixView((2,), (3, 0, 1)),
    ],
    ids=str,
)
def test_round_trip(xp, view):
    x = np.random.default_rng(2).standard_normal((2, 3, 4, 5))
    m = view.to_matrix(xp.asarray(x))
    assert np.array_equal(np.asarray(view.from_matrix(m, x.shape)), x)


@pytest.mark.parametrize("view", [MatrixView((0,), (1,)), MatrixView((1,), (0,))], ids=str)
def test_two_axes_as_they_stand_or_transposed(xp, view):
    x = np.random.default_rng(3).standard_normal((2, 3))
    m = view.to_matrix(xp.asarray(x))
    assert np.array_equal(np.asarray(m), x if view.rows == (0,) else x.T)
    assert np.array_equal(np.asarray(view.from_matrix(m, (2, 3))), x)


def test_space_of_bare_blocks(xp):
    space = Space.of(truth.to(xp, truth.blocks(0) | {"k": np.zeros((2, 1, 3))}))
    assert space.names == (*truth.SHAPES, "k")
    assert space.shapes == truth.SHAPES | {"k": (2, 1, 3)}
    assert space.size == 12 + 1 + 3 + 4 + 6
    assert space.size_of("a.W") == 12
    # Only two axes tell which are rows: a kernel has no view here.
    assert set(space.matrix_view) == {"a.W", "c.W"}


def test_select_keeps_order_views_and_arrays(xp):
    space = Space.of(truth.to(xp, truth.blocks(0), "float32")).select(["c.W", "z"])
    assert space.names == ("c.W", "z")
    assert set(space.matrix_view) == {"c.W"}
    assert space.asarray([1.0]).dtype == xp.float32


def test_random_draws_are_numpys_in_sorted_name_order(xp):
    drawn = truth.back(Space.of(truth.to(xp, truth.blocks(0))).random(np.random.default_rng(5)))
    rng = np.random.default_rng(5)
    expected = {name: rng.standard_normal(truth.SHAPES[name]) for name in sorted(truth.SHAPES)}
    assert list(drawn) == list(truth.SHAPES)
    assert all(np.array_equal(drawn[name], expected[name]) for name in expected)
