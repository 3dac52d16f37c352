"""Choosing tensors by name."""

from __future__ import annotations

import pytest

from geodiag.core.selection import assign, select
from geodiag.errors import ArgumentError, ParameterError

ARRAYS = {"0.weight": 2, "0.bias": 1, "10.weight": 2, "head": 0}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, list(ARRAYS)),
        ("weight", ["0.weight", "10.weight"]),
        (r"^0\.", ["0.weight", "0.bias"]),
        (["head", "bias$"], ["0.bias", "head"]),  # in the arrays' order
        (("0", "0.bias"), ["0.weight", "0.bias", "10.weight"]),
        (lambda name, x: x == 2, ["0.weight", "10.weight"]),
    ],
)
def test_select(where, expected):
    assert list(select(ARRAYS, where)) == expected


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ("conv", ParameterError, r"'conv' matches no parameter. Got: parameters 0.weight, 0.bias"),
        (["head", "conv"], ParameterError, "'conv' matches no parameter"),
        ([], ParameterError, "matches no parameter"),
        (lambda name, x: False, ParameterError, "matches no parameter"),
        ("[", ArgumentError, "not a regular expression"),
        ([3], ArgumentError, "not a regular expression"),
        (3, ArgumentError, "where= must be a regular expression, a list of them, or a predicate"),
    ],
)
def test_select_errors(where, error, said):
    with pytest.raises(error, match=said):
        select(ARRAYS, where)


def test_assign_gives_each_name_to_its_first_pattern():
    found = assign(["weight", "0", "."], ARRAYS)
    assert found == {"weight": ["0.weight", "10.weight"], "0": ["0.bias"], ".": ["head"]}


def test_a_pattern_whose_names_went_to_others_is_no_error():
    assert assign([".", "head"], ARRAYS)["head"] == []
    with pytest.raises(ParameterError, match="'conv' matches no parameter"):
        assign([".", "conv"], ARRAYS)
