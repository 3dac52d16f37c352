"""Batches: what counts as one batch, how batches are weighed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from geodiag.core.batch_forms import (
    ONE_BATCH,
    batch_size,
    is_one_batch,
    is_unsure,
    one_or_many,
)
from geodiag.core.batches import Batches
from geodiag.errors import ArgumentError, DataError, LossError

POINT = {"x": np.ones(3)}

BAD = {
    "no data": (lambda: Batches([]), DataError, ["empty"]),
    "an empty batch": (lambda: Batches((np.ones((0, 2)),)), DataError, ["empty", "tuple"]),
    "an empty tuple": (lambda: Batches(()), DataError, ["empty"]),
    "a generator": (
        lambda: Batches(x for x in [POINT]),
        DataError,
        ["one-shot iterator", "generator", "list(iterator)"],
    ),
    "an iterator": (lambda: Batches(iter([POINT])), DataError, ["one-shot", "list_iterator"]),
    "a number as data": (lambda: Batches(3), DataError, ["unknown form", "int"]),
    "a string as data": (lambda: Batches("file.csv"), DataError, ["unknown form", "str"]),
    "an unknown reduction": (lambda: Batches([POINT], reduction="max"), ArgumentError, ["'max'"]),
    "a weight that is no function": (lambda: Batches([POINT], weight=2), ArgumentError, ["int"]),
}


@pytest.mark.parametrize("row", BAD)
def test_one_clear_error(row):
    call, error, words = BAD[row]
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_a_loader_that_is_empty_when_iterated():
    class Loader:
        def __iter__(self):
            return iter(())

    with pytest.raises(DataError, match="empty"):
        list(Batches(Loader()))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_must_be_finite_and_not_negative(weight):
    batches = Batches([(np.ones(2),), (np.ones(3),)], weight=lambda batch: weight)
    with pytest.raises(DataError, match="finite number ≥ 0"):
        [batches.weigh(batch) for batch in batches]


X, Y = np.arange(10.0).reshape(5, 2), np.arange(5.0)


@pytest.mark.parametrize("batch", [(X, Y), {"x": X}, X], ids=["tuple", "dict", "array"])
def test_one_batch_or_many(batch):
    assert is_one_batch(batch)
    assert Batches(batch).single
    assert Batches([batch]).single
    many = Batches([batch, batch])
    assert not many.single
    assert not is_one_batch([batch])
    for _ in range(2):  # re-iterable
        assert len(list(many)) == 2


def test_the_weighted_mean_is_the_mean_over_examples():
    """A ragged last batch counts for what it holds; unweighted it would be biased."""
    batches = Batches([(X[:3], Y[:3]), (X[3:], Y[3:])])
    weights = [batches.weigh(batch) for batch in batches]
    total = sum(w * batch[1].mean() for w, batch in zip(weights, batches, strict=True))
    assert total / batches.normalise(sum(weights)) == pytest.approx(Y.mean(), rel=1e-15)
    assert weights == [3.0, 2.0]


def test_sums_add():
    batches = Batches([(X[:3], Y[:3]), (X[3:], Y[3:])], reduction="sum")
    total = sum(batches.weigh(batch) * batch[1].sum() for batch in batches)
    assert total / batches.normalise(2.0) == Y.sum()


def test_a_weight_of_ones_own():
    batches = Batches([{"n": np.ones(4)}, {"n": np.zeros(2)}], weight=lambda b: b["n"].sum())
    assert [batches.weigh(b) for b in batches] == [4.0, 0.0]
    assert batches.normalise(4.0) == 4.0
    with pytest.raises(DataError, match="weight zero"):
        batches.normalise(0.0)


def test_batch_sizes(xp):
    assert batch_size((xp.ones((7, 2)), xp.ones((3,)))) == 7.0
    assert batch_size({"meta": "text", "inner": {"x": xp.ones((4,))}}) == 4.0
    assert batch_size(xp.asarray(1.0)) == 1.0
    assert batch_size(("no", "arrays")) is None


def test_no_data_is_a_batch_of_its_own():
    """For losses that need none."""
    assert list(Batches(None)) == [None]
    assert Batches(None).single


class Pair:
    """An object with arrays as attributes."""

    def __init__(self, x, y, **more):
        self.x, self.y = x, y
        vars(self).update(more)


def test_an_object_that_holds_arrays_is_one_batch(xp):
    x, y = xp.ones((4, 2)), xp.ones((4,))
    assert Batches(Pair(x, y)).single
    assert is_one_batch(Pair({"inner": [x]}, None))
    assert not is_one_batch(Pair(1, "text"))
    assert not is_one_batch(lambda: x)
    for other in (Pair(1, "text"), object(), print):
        with pytest.raises(DataError, match="unknown form"):
            Batches(other)


def test_the_size_of_an_object_is_that_of_all_its_arrays(xp):
    x, y = xp.ones((4, 2)), xp.ones((4,))
    assert batch_size(Pair(x, y, name="text")) == 4.0
    assert batch_size(Pair(x, xp.ones((2,)))) is None
    assert batch_size(Pair(x, xp.ones((2,)), num_graphs=2)) == 2.0
    assert batch_size(Pair(x, xp.ones((4,)), edges=xp.ones((2, 9)), num_graphs=2)) is None
    assert batch_size((Pair(x, y), xp.ones((3,)))) == 3.0


def test_a_list_of_arrays_is_what_the_loss_takes():
    def takes(*kinds):
        return lambda batch: None if isinstance(batch, kinds) else ValueError("no unpacking")

    data = [X, Y]
    assert is_unsure(data)
    assert is_unsure([X, {"y": Y}])
    assert not any(map(is_unsure, ([(X, Y)], [{"x": X}], [], (X, Y), {"x": X}, X)))
    assert one_or_many(data, takes(np.ndarray)) == (data, ())
    assert one_or_many(data, takes(list, np.ndarray)) == (data, ())
    assert one_or_many(data, takes(list)) == ([data], (ONE_BATCH,))
    with pytest.raises(DataError, match=r"neither.*no unpacking.*tuple"):
        one_or_many(data, takes())
    with pytest.raises(LossError):
        one_or_many(data, lambda batch: LossError("not a scalar"))


class Endless:
    def __init__(self, length=None):
        self.length = length

    def __len__(self):
        if self.length is None:
            raise TypeError
        return self.length

    def __iter__(self):
        while True:
            yield (X, Y)


@pytest.mark.parametrize("length", [None, 5])
def test_a_loader_without_an_end(length):
    batches, seen = Batches(Endless(length)), []
    with pytest.raises(DataError, match="more than 1000 batches"):
        seen.extend(batches)
    assert len(Batches([(X, Y)] * 1500)._data) == len(list(Batches([(X, Y)] * 1500))) == 1500


def test_targets_that_are_left_out_are_said_once(xp):
    y = xp.asarray([1, -100, 2])
    batches = Batches([(xp.ones((3,)), y), {"labels": y}])
    assert [batches.weigh(batch) for batch in batches] == [3.0, 3.0]
    assert len(batches.notes) == 1
    for silent in (
        Batches([(y + 200,)] * 2),
        Batches((y,)),
        Batches([(y,)] * 2, reduction="sum"),
        Batches([(y,)] * 2, weight=lambda batch: 2.0),
    ):
        assert all(silent.weigh(batch) > 0 for batch in silent)
        assert silent.notes == []
