"""What the header of a log says of data; never an error of others' objects, nor without end."""

from __future__ import annotations

import numpy as np
import pytest

from geodiag.core.description import description


class Broken:
    @property
    def shape(self):
        raise ValueError


class Unread(dict):
    def items(self):
        raise KeyError


def within_itself():
    data = []
    data.append(data)
    return data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"x": np.ones((4, 2)), "y": 1.0}, "x: 4×2 float64, y: float"),
        ((np.float32(1.0), None), "scalar float32, "),
        (within_itself(), "list"),
        (Broken(), "Broken"),
        (Unread(a=1), "Unread"),
        (range(3), "range of 3"),
    ],
)
def test_description(data, said):
    assert description(data) == said
