"""Blocks as one vector: a norm that says it is entrywise is asked on the vector, with its answers.

The truth is a weighted ℓ∞ norm of equal weights, written out, and the library's ℓ∞ on tensors.
"""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from geodiag.oracles import MatrixProblem
from geodiag.solvers import ravel
from geodiag.solvers.power_step import PowerStep
from tests import truth

SHAPES = {"W": (2, 3), "b": (2,)}
H = truth.symmetric(8, 0)


class Doubled(geodiag.Norm):
    """2 max |d_i|, which keeps the names of the blocks that it was asked on."""

    def __init__(self, entrywise):
        self.entrywise, self.asked = entrywise, []

    def value(self, d):
        self.asked.append(tuple(d))
        return 2 * np.max([np.max(np.abs(x)) for x in d.values()])

    def lmo(self, g):
        self.asked.append(tuple(g))
        return {name: np.sign(x) / 2 for name, x in g.items()}


@pytest.mark.parametrize("entrywise", [False, True])
def test_a_power_step_asks_an_entrywise_norm_on_the_vector(entrywise):
    norm, oracle = Doubled(entrywise), MatrixProblem(H, SHAPES).at()
    d = {"W": np.ones((2, 3)), "b": np.array([1.0, -1.0])}
    x = np.append(np.ones(6), [1.0, -1.0]) / 2  # of unit norm
    step = PowerStep(norm)(oracle, d, oracle.gradient())
    assert set(norm.asked) == {("flat",) if entrywise else ("W", "b")}
    assert step.numbers[0] == pytest.approx(x @ H @ x, rel=1e-12)
    ahead = np.concatenate([step.ahead[name].ravel() for name in SHAPES])
    np.testing.assert_array_equal(ahead, np.sign(H @ x) / 2)


@pytest.mark.parametrize("name", sorted({*geodiag.available_norms()} - {"preconditioned"}))
def test_entrywise_norms_are_those_of_the_joined_vector(name):
    oracle = MatrixProblem(H, SHAPES).at()
    norm = geodiag.problems.as_norm(name).bind(oracle.space)
    assert norm.entrywise == (name in {"l1", "l2", "linf"})
    if norm.entrywise:
        d = truth.blocks(4, SHAPES)
        flat = {ravel.NAME: truth.flat(d)}
        assert norm.value(flat) == pytest.approx(norm.value(d), rel=1e-12)
        np.testing.assert_allclose(norm.lmo(flat)[ravel.NAME], truth.flat(norm.lmo(d)), rtol=1e-12)
        assert not np.isfinite(norm.value(d | {"b": np.array([np.nan, 1.0])}))
