"""Unusable input to the JAX adapter: one clear GeodiagError each, the parameters as they were."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
import geodiag_jax
from geodiag import errors
from tests.geodiag_jax.models import X, Y, logistic, logistic_params


class WrongShapes(geodiag.Norm):
    def value(self, d):
        return sum((x * x).sum() for x in d.values()) ** 0.5

    def lmo(self, g):
        return {name: x.reshape((-1,)) for name, x in g.items()}


def loss_of(f):
    """A loss that makes something else of the logistic loss."""
    return lambda p, x, y: f(logistic(p, x, y))


ROWS = {
    "loss of shape (1,)": (loss_of(lambda v: v[None]), {}, errors.LossError, r"shape \(1,\)"),
    "loss complex": (loss_of(lambda v: v + 1j), {}, errors.LossError, "complex128"),
    "loss integer": (loss_of(lambda v: jnp.int32(3)), {}, errors.LossError, "int32"),
    "loss with aux": (loss_of(lambda v: (v, {})), {}, errors.LossError, r"tuple of 2.*\[0\]"),
    "loss a float": (lambda p, x, y: 1.0, {}, errors.LossError, "float"),
    "loss nan": (loss_of(lambda v: v * jnp.nan), {}, errors.NonFiniteError, "loss is not finite"),
    "gradient nan": (
        loss_of(lambda v: v + jnp.sqrt(v - v)), {}, errors.NonFiniteError,
        "gradient is not finite"),
    "no params": (logistic, {"params": None}, errors.ParameterError, "params=, the point"),
    "params without arrays": (logistic, {"params": {}}, errors.ParameterError, "without an array"),
    "only keys": (
        logistic, {"params": {"k": jax.random.key(0)}}, errors.ParameterError,
        "no parameter to measure"),
    "no match": (logistic, {"where": "conv"}, errors.ParameterError, "matches no parameter"),
    "predicate no match": (
        logistic, {"where": lambda name, x: False}, errors.ParameterError, "matches no parameter"),
    "integer": (
        lambda p: 0.0, {"params": {"w": jnp.ones(2), "n": jnp.arange(2)}, "data": None},
        errors.ParameterError, "'n'.*int64.*where="),
    "complex": (
        lambda p: 0.0, {"params": {"w": jnp.ones(2) * 1j}, "data": None},
        errors.ParameterError, "'w'.*complex128.*where="),
    "bool": (
        lambda p: 0.0, {"params": {"w": np.array([True])}, "data": None},
        errors.ParameterError, "'w'.*bool.*where="),
    "empty list": (logistic, {"data": []}, errors.DataError, "empty"),
    "empty batch": (logistic, {"data": (X[:0], Y[:0])}, errors.DataError, "empty"),
    "one shot": (logistic, {"data": iter([(X, Y)])}, errors.DataError, "one-shot"),
    "data unknown": (logistic, {"data": 3}, errors.DataError, "unknown form"),
    "words": (
        logistic, {"data": (X, np.array(["a", "b"]))}, errors.DataError, "JAX cannot compute"),
    "unhashable part": (logistic, {"data": (X, {1, 2})}, errors.DataError, "hashable.*set"),
    "criterion": (logistic, {"criterion": min}, errors.ArgumentError, "criterion=.*inside"),
    "loss_fn": (logistic, {"loss_fn": min}, errors.ArgumentError, "loss_fn=.*in place"),
    "shapes": (logistic, {"shapes": {"x": (5,)}}, errors.ArgumentError, "shapes=.*leave it out"),
    "process group": (
        logistic, {"process_group": object()}, errors.ArgumentError, "process_group=.*sharding"),
    "stop_gradient": (
        logistic, {"stop_gradient": "error"}, errors.ArgumentError, "makes a constant"),
    "unknown stop_gradient": (
        logistic, {"stop_gradient": "never"}, errors.ArgumentError, "unknown stop_gradient="),
    "engine": (logistic, {"engine": "warp"}, errors.ArgumentError, "'warp'.*'linearize'"),
    "memory": (logistic, {"memory": -1}, errors.ArgumentError, "memory=.*bytes"),
    "reduction": (logistic, {"reduction": "max"}, errors.ArgumentError, "reduction"),
    "weight": (logistic, {"weight": 3}, errors.ArgumentError, "weight="),
    "norm": (logistic, {"norm": "spectrall"}, errors.UnknownNorm, "spectral"),
    "preconditioned": (logistic, {"norm": "preconditioned"}, errors.NormError, "preconditioner P"),
    "muon": (logistic, {"norm": "muon"}, errors.NormError, "at least one matrix"),
    "lmo shapes": (logistic, {"norm": WrongShapes()}, errors.NormError, "wrong shape at 'b'"),
    "start names": (logistic, {"start": {"v": jnp.ones(4)}}, errors.ShapeError, "start"),
    "start shape": (
        logistic, {"start": {"w": jnp.ones(5), "b": jnp.ones(())}}, errors.ShapeError, "'w'"),
    "start zero": (
        logistic, {"start": {"w": jnp.zeros(4), "b": jnp.zeros(())}}, errors.ArgumentError,
        "not zero"),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "change", "error", "says"), ROWS.values(), ids=ROWS)
def test_row(loss, change, error, says):
    arguments = {"params": logistic_params(), "data": (X, Y), **change}
    leaves = [x for x in jax.tree_util.tree_leaves(arguments["params"]) if hasattr(x, "tobytes")]
    before = [x.tobytes() for x in leaves]
    with pytest.raises(error, match=says) as caught:
        geodiag.sharpness(loss, **arguments)
    assert type(caught.value) is error
    assert [x.tobytes() for x in leaves] == before


@pytest.mark.parametrize("lr", [0, -0.1, float("nan"), float("inf"), "0.1", True, None])
def test_lr(lr):
    with pytest.raises(errors.ArgumentError, match="lr must be"):
        geodiag_jax.non_euclidean_gd(lr, "l2")


STEPS = {
    "names": ({"v": jnp.ones(4)}, errors.ShapeError, "step"),
    "shape": ({"w": jnp.ones(3), "b": jnp.ones(())}, errors.ShapeError, "'w'"),
    "zero": ({"w": jnp.zeros(4), "b": jnp.zeros(())}, errors.ArgumentError, "zero"),
}


@pytest.mark.parametrize(("step", "error", "says"), STEPS.values(), ids=STEPS)
def test_step(step, error, says):
    with pytest.raises(error, match=says):
        geodiag.directional_smoothness(logistic, step, params=logistic_params(), data=(X, Y))


POINTS = {
    "names": {"v": jnp.ones(4)},
    "shape": {"w": jnp.ones(3), "b": jnp.ones(())},
    "shape in a list": [jnp.ones(4), jnp.ones(())],
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_other_point(point):
    problem = geodiag.problem(logistic, params=logistic_params(), data=(X, Y))
    with pytest.raises(errors.ShapeError, match="params"):
        problem.at(point)


class TorchLike:
    """A callable model of another framework: not ours, whatever ``params`` is."""

    def named_parameters(self):
        return ()

    def __call__(self, x):
        return x


class OtherCallable:
    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "params"),
    [(TorchLike(), {"w": jnp.ones(2)}), (OtherCallable(), None), (OtherCallable, jnp.ones(2))],
    ids=["torch-like", "callable without params", "class"],
)
def test_models_of_others_are_left_alone(model, params):
    with pytest.raises(errors.UnknownModel, match="no adapter recognises"):
        geodiag.sharpness(model, params=params)


def test_a_pair_of_callables_and_a_matrix_are_left_to_the_core():
    pair = (lambda b: b["w"] @ b["w"], lambda b: {"w": 2 * b["w"]})
    got = geodiag.sharpness(pair, params={"w": np.ones(2)})
    assert float(got) == pytest.approx(2.0, rel=1e-8)
    assert float(geodiag.sharpness(jnp.diag(jnp.asarray([1.0, 3.0])))) == pytest.approx(3.0)


def test_exceptions_of_the_loss_come_through():
    class Mine(Exception):
        pass

    def loss(p, x, y):
        raise Mine("as it was")

    for engine in ("auto", "recompute", "reverse"):
        with pytest.raises(Mine) as caught:
            geodiag.sharpness(loss, params=logistic_params(), data=(X, Y), engine=engine)
        assert caught.value.args == ("as it was",)


MIXED = """
import jax, jax.numpy as jnp, geodiag
one, two = jax.devices()
params = {"a": jax.device_put(jnp.ones(2), one), "b": jax.device_put(jnp.ones(2), two)}
try:
    geodiag.problem(lambda p: jnp.sum(p["a"] ** 2), params=params)
except geodiag.errors.ParameterError as e:
    print(e)
params["b"] = jax.device_put(params["b"], one)
params["c"] = jnp.ones(1)  # committed to no device: it may join any
print(float(geodiag.sharpness(lambda p: sum(jnp.sum(x ** 2) for x in p.values()), params=params)))
moved = jax.device_put(params, two)
result = geodiag.sharpness(lambda p: sum(jnp.sum(x ** 2) for x in p.values()), params=moved)
print(result.direction["a"].devices() == {two})
"""


def run(code, **environment):
    """Run ``code`` in a fresh Python, UserWarnings as errors; its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_mixed_devices():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
    said, value, stayed = run(MIXED, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    assert "mixed devices" in said
    assert "jax.device_put" in said
    assert float(value) == pytest.approx(2.0)
    assert stayed == "True"


SINGLE = """
import jax, jax.numpy as jnp, numpy as np, geodiag
assert not jax.config.jax_enable_x64
h = np.array([3.0, 0.5, 1.0, 2.0] * 4)
params = {"w": np.ones(16)}  # float64 on the host
loss = lambda p, h: jnp.sum(h * p["w"] ** 2) / 2
for norm in ("l2", "linf", "l1", "block", "spectral", "nuclear"):
    result = geodiag.sharpness(loss, norm, params=params, data=h)
    print(float(result), result.direction["w"].dtype)
assert not jax.config.jax_enable_x64
"""


def test_float32_mode_needs_no_flag_and_warns_of_nothing():
    """H = diag(h) ⪰ 0: S_ℓ∞ = tr H = 26; max h = 3 in the norms that are ℓ2, ℓ1 or sums of one
    vector's ℓ2. Lanczos' residual 1e-4 allows 3·(1 − 1e-4); ascent stops within its 1e-4."""
    lines = [line.split() for line in run(SINGLE, JAX_ENABLE_X64="0", JAX_PLATFORMS="cpu")]
    assert {dtype for _, dtype in lines} == {"float32"}
    values = [float(value) for value, _ in lines]
    np.testing.assert_allclose(values, [3, 26, 3, 3, 3, 3], rtol=1e-3)


@pytest.mark.parametrize("data", [(X, Y), None, [X, X, X]])
def test_a_loss_of_another_signature_says_how_it_is_called(data):
    def loss(params, batch, more):  # three arguments; then two, for a tuple of two
        return jnp.sum(params["w"] ** 2)

    def whole(params, batch):
        return jnp.sum(params["w"] ** 2)

    with pytest.raises(errors.LossError, match=r"lambda params, \*batch"):
        geodiag.sharpness(
            whole if isinstance(data, tuple) else loss, params={"w": jnp.ones(3)}, data=data
        )


def test_a_certificate_without_an_envelope_is_refused_at_the_first_step():
    class Largest(geodiag.Norm):
        def value(self, d):
            return geodiag.norms.Linf().value(d)

        def lmo(self, g):
            return geodiag.norms.Linf().lmo(g)

    params = {"w": jnp.ones(2)}
    monitor = geodiag_jax.Monitor(
        lambda p: jnp.sum(p["w"] ** 2), Largest(), lr=0.1, certificate=True
    )
    with pytest.raises(geodiag.errors.NormError, match="no quadratic envelope"):
        monitor.observe(0, params, params)
