"""Half precision in JAX: what the loss is computed in, and what is said about it.

Diagonal quadratics: their Hessian is known, up to the rounding that is looked for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from geodiag import Status, errors
from tests.geodiag_jax.half import needs_float16

SCALES = jnp.asarray([3.3, 1.7, 0.9])
BF16, FP16 = 2.0**-7, 2.0**-10


def plain(params, x):
    return 0.5 * jnp.sum(SCALES.astype(x.dtype) * params["w"] ** 2 * x)


def cast(params, x):
    return plain({"w": params["w"].astype(jnp.bfloat16)}, x.astype(jnp.bfloat16))


def looped(params, x):
    """The cast is inside of a loop, inside of a checkpoint."""

    def step(w, _):
        return w.astype(jnp.float16).astype(w.dtype), None

    w, _ = jax.checkpoint(lambda w: jax.lax.scan(step, w, None, length=2))(params["w"])
    return plain({"w": w}, x)


def unrelated(params, x):
    """What does not depend on the parameters may be in any precision."""
    return plain(params, x) + jnp.sum(x.astype(jnp.bfloat16) ** 2).astype(x.dtype)


def problem(loss, dtype, engine="auto"):
    params = {"w": jnp.asarray([0.5, -0.3, 0.7], dtype=dtype)}
    data = (jnp.asarray([1.0, 1.1, 0.9], dtype=dtype),)
    return geodiag.problem(loss, params=params, data=data, engine=engine)


@pytest.mark.parametrize(
    ("loss", "dtype", "eps"),
    [
        (plain, "float64", 2.0**-52),
        (plain, "float32", 2.0**-23),
        (plain, "bfloat16", BF16),
        pytest.param(plain, "float16", FP16, marks=needs_float16),
        (cast, "float32", BF16),
        (looped, "float32", FP16),
        (unrelated, "float32", 2.0**-23),
    ],
)
def test_the_coarsest_dtype_of_a_loss_is_seen(loss, dtype, eps):
    assert problem(loss, dtype).at().precision == eps


@pytest.mark.parametrize("loss", [plain, cast])
def test_below_32_bits_the_uncertainty_is_measured_and_noted(loss):
    dtype = "bfloat16" if loss is plain else "float32"
    result = geodiag.sharpness(problem(loss, dtype))
    (note,) = result.notes
    assert "fewer than 32 bits" in note
    assert result.status is Status.PRECISION
    noted = float(note.split()[-3])
    assert noted >= 0.0078  # one spacing
    assert result.value == pytest.approx(3.3, rel=3 * noted)
    assert result.direction["w"].dtype == jnp.float32


def test_differences_of_half_precision_are_refused():
    for loss, dtype in ((plain, "bfloat16"), (cast, "float32")):
        oracle = problem(loss, dtype, "finite-difference").at()
        with pytest.raises(errors.EngineError, match="at least 32 bits"):
            oracle.hvp({"w": jnp.ones(3)})
        assert oracle.gradient()["w"].dtype == jnp.float32


def steep(params):
    """Its curvature varies over a hundredth of the parameters' own size."""
    return jnp.sum(jnp.cosh(100 * (params["w"] - 1.0)) / 1e4)


def test_the_step_of_differences_suits_the_loss():
    """cosh(100 h) is off by (100 h)²/6: by 0.4 with a step of the parameters' own size, 0.015.

    With one of a hundredth it is to ε^{2/3} = 2e-5, times a few.
    """
    params = {"w": jnp.ones(4, dtype=jnp.float32)}
    oracle = geodiag.problem(steep, params=params, engine="finite-difference").at()
    d = {"w": jnp.asarray([1.0, 0.0, 0.0, 0.0])}
    np.testing.assert_allclose(oracle.hvp(d)["w"], [1.0, 0.0, 0.0, 0.0], atol=1e-3)
    again = oracle.independent_hvp(d)
    assert again is not None
    np.testing.assert_allclose(again["w"], [1.0, 0.0, 0.0, 0.0], atol=1e-3)


def test_a_precision_without_kernels_is_named():
    def loss(params):
        preset = jax.lax.DotAlgorithmPreset.F16_F16_F32
        w = params["w"].astype(jnp.float16)
        return jax.lax.dot(w, w, precision=preset, preferred_element_type=jnp.float32)

    params = {"w": jnp.ones(3, dtype=jnp.float32)}
    try:
        jax.jit(loss)(params)
    except ValueError:
        with pytest.raises(errors.LossError, match="does not run in this precision"):
            geodiag.sharpness(loss, params=params)
    else:  # another device
        geodiag.sharpness(loss, params=params, max_hvps=4)


def test_the_data_are_not_read_again_for_it():
    class Loader:
        passes = 0

        def __iter__(self):
            Loader.passes += 1
            return iter([(jnp.ones(3),), (2 * jnp.ones(3),)])

    oracle = geodiag.problem(plain, params={"w": jnp.ones(3)}, data=Loader()).at()
    before = oracle.precision, Loader.passes
    assert (oracle.precision, Loader.passes) == before
