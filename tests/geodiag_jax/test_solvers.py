"""Losses through solvers with derivatives of their own: differential equations and roots.

y′ = a y has y(1) = eᵃ, and n steps of Euler make (1 + a/n)ⁿ. The derivatives of the root of
y³ + y = a follow from the implicit function. S is the second derivative of y² with respect to a.
"""

from __future__ import annotations

import math

import diffrax
import jax.numpy as jnp
import optimistix
import pytest
from jax.experimental.ode import odeint

import geodiag

A, STEPS = 0.7, 4
TERM = diffrax.ODETerm(lambda t, y, a: a * y)
CONTINUOUS = 4 * math.exp(2 * A)
EULER = 2 * STEPS * (2 * STEPS - 1) / STEPS**2 * (1 + A / STEPS) ** (2 * STEPS - 2)


def solved(solver, adjoint):
    def final(a):
        found = diffrax.diffeqsolve(
            TERM, solver, 0.0, 1.0, 1 / STEPS, jnp.ones(()), args=a, adjoint=adjoint
        )
        return found.ys[-1]

    return final


def root(a):
    newton = optimistix.Newton(rtol=1e-10, atol=1e-10)
    return optimistix.root_find(lambda y, a: y**3 + y - a, newton, jnp.ones(()), args=a).value


def _of_root():
    y = float(root(jnp.asarray(A)))
    slope = 1 / (3 * y**2 + 1)
    return 2 * slope**2 + 2 * y * (-6 * y * slope**3)


CASES = {
    "odeint": (
        lambda a: odeint(lambda y, t, a: a * y, jnp.ones(()), jnp.array([0.0, 1.0]), a)[-1],
        CONTINUOUS,
    ),
    "diffrax": (solved(diffrax.Euler(), diffrax.RecursiveCheckpointAdjoint()), EULER),
    "diffrax backsolve": (solved(diffrax.Tsit5(), diffrax.BacksolveAdjoint()), CONTINUOUS),
    "diffrax direct": (solved(diffrax.Euler(), diffrax.DirectAdjoint()), EULER),
    "optimistix": (root, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_second_derivative_is_found_in_some_way(name):
    final, truth = CASES[name]
    result = geodiag.sharpness(lambda p: final(p["a"]) ** 2, params={"a": jnp.asarray(A)})
    assert float(result) == pytest.approx(_of_root() if truth is None else truth, rel=1e-4)
    again = geodiag.sharpness(lambda p: final(p["a"]) ** 2, params={"a": jnp.asarray(A)})
    assert again.value == result.value
