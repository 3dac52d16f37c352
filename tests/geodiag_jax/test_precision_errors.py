"""Precisions in JAX: the stated error of a value, against the same direction in float64.

A relative spacing ε is 2⁻⁷ in bfloat16, 2⁻¹⁰ in float16 and 1.2e-7 in float32. A value is a sum of
rounded products through a few layers, off by some ε of its size: 6ε is the stated error here, for
a case of two layers, at its own (rounded) parameters.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from geodiag import Status
from tests.geodiag_jax.half import needs_float16
from tests.support.jax_cases import CASES, REFUSED

EPS = {name: float(jnp.finfo(name).eps) for name in ("float64", "float32", "float16", "bfloat16")}
HALF = ("float16", "bfloat16")
HALVES = [pytest.param("float16", marks=needs_float16), "bfloat16"]


def widened(arguments, dtype=jnp.float64):
    """The same case at the same point, in float64."""

    def wide(x):
        floating = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if floating else x

    return arguments | {
        key: jax.tree_util.tree_map(wide, arguments[key]) for key in ("params", "data")
    }


def curvature(arguments, direction):
    """⟨d, Hd⟩ in float64."""
    oracle = geodiag.problem(**widened(arguments)).at()
    d = {name: oracle.space.asarray(np.asarray(x, np.float64)) for name, x in direction.items()}
    return sum(float(jnp.vdot(d[name], x)) for name, x in oracle.hvp(d).items())


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), *HALVES])
def test_the_error_of_a_value_is_as_stated(dtype):
    arguments = CASES["nested dicts (Haiku's), tanh"](dtype)
    result = geodiag.sharpness(**arguments, max_hvps=12)
    assert {str(x.dtype) for x in result.direction.values()} == {"float32"}
    assert result.value == pytest.approx(curvature(arguments, result.direction), rel=6 * EPS[dtype])
    assert bool(result.notes) is (dtype in HALF)
    if dtype in HALF:
        assert "fewer than 32 bits" in result.notes[0]
        assert result.status in (Status.PRECISION, Status.BUDGET)


@pytest.mark.slow
def test_float32_and_float64_agree_on_the_sharpness():
    """Lanczos to a residual of 1e-4 allows 1e-8 over the gap; float32 itself some 1e-6."""
    case = CASES["nested dicts (Haiku's), tanh"]
    single, double = (
        geodiag.sharpness(**case(dtype), rtol=1e-4) for dtype in ("float32", "float64")
    )
    assert float(single) == pytest.approx(float(double), rel=1e-5)
    assert single.notes == double.notes == ()


@pytest.mark.slow
# Running statistics that a loss closes over stay in float32, where the truth is float64.
@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", CASES)
def test_below_32_bits_every_case_says_how_far_rounding_moves_it(name, dtype):
    """Within five times what the note says: it is one draw of the rounding."""
    if (name, dtype) in REFUSED:
        pytest.skip("JAX itself refuses on this device")
    arguments = CASES[name](dtype)
    result = geodiag.sharpness(**arguments, max_hvps=12)
    note = next(text for text in result.notes if "fewer than 32 bits" in text)
    noted = float(note.split()[-3]) if "about" in note else 1.0
    assert result.value == pytest.approx(curvature(arguments, result.direction), rel=5 * noted)
