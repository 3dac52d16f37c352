"""``geodiag_jax.tracker`` inside the user's own jit, scan and vmap.

The truth is the closed-form Hessian of logistic regression: its top eigenvalue, and its maximum
over the cube, counted out over the 2⁵ corners. Float64, sums of 20 terms of order one: 1e-12.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag_jax
from geodiag import errors
from tests.geodiag_jax.models import (
    Counted,
    W,
    X,
    Y,
    flat,
    guarded_logistic,
    logistic,
    logistic_params,
)
from tests.geodiag_jax.programs import GroupLinf

CORNERS = np.array(list(itertools.product([-1.0, 1.0], repeat=5)))


def hessian(params):
    A = np.column_stack([np.ones(20), X])
    p = 1 / (1 + np.exp(-A @ flat(params)))
    return (A.T * (p * (1 - p))) @ A / 20


def largest(H, norm):
    if norm == "l2":
        return np.linalg.eigvalsh(H)[-1]
    return max(corner @ H @ corner for corner in CORNERS)


def along_a_run(tracker, loss=logistic, steps=30):
    """(measurements, witnesses, points) of gradient descent, in one compiled scan."""

    def step(carry, _):
        params, state = carry
        answer, state = tracker.measure(state, params, X, Y)
        gradient = jax.grad(loss)(params, X, Y)
        moved = jax.tree_util.tree_map(lambda w, g: w - 0.5 * g, params, gradient)
        return (moved, state), (answer, state.witness, params)

    params = logistic_params()
    start = params, tracker.init(params)
    return jax.jit(lambda s: jax.lax.scan(step, s, length=steps)[1])(start)


def row(tree, k):
    return {name: x[k] for name, x in tree.items()}


@pytest.mark.parametrize(("norm", "loss"), [("l2", logistic), ("linf", guarded_logistic)])
def test_in_a_scan(norm, loss):
    """The value of the witness, and never above the maximum; below it by the residual of a few
    steps in ℓ2, and at a local maximum in ℓ∞. The guarded loss: 1e-10, see test_jax_engines.

    In ℓ∞ a warm witness is a corner to which the second product points, or the first itself."""
    least = 0.999 if norm == "l2" else 0.9
    answers, witnesses, points = along_a_run(geodiag_jax.tracker(loss, norm), loss)
    for k in range(30):
        H, d = hessian(row(points, k)), flat(row(witnesses, k))
        value, top = float(answers.value[k]), largest(H, norm)
        length = np.linalg.norm(d) if norm == "l2" else np.max(np.abs(d))
        assert length == pytest.approx(1.0, rel=1e-12)
        assert value == pytest.approx(d @ H @ d, rel=1e-10)
        assert least * top < value < top * (1 + 1e-10)
        gradient = flat(jax.grad(logistic)(row(points, k), X, Y))
        dual = np.linalg.norm(gradient) if norm == "l2" else np.sum(np.abs(gradient))
        assert float(answers.dual_norm[k]) == pytest.approx(dual, rel=1e-10)
    assert all(answers.num_hvps <= 20)
    cold = np.isin(np.arange(30), [0, 20])
    warm = set(answers.num_hvps[~cold].tolist())
    assert warm == {4} if norm == "l2" else {2} <= warm <= {2, 3, 4}


def test_a_hundred_measurements_trace_once():
    loss = Counted(logistic)
    tracker = geodiag_jax.tracker(loss, GroupLinf())
    measure = jax.jit(tracker.measure)
    params = {name: x.astype(jnp.float32) for name, x in logistic_params().items()}
    state, counts = tracker.init(params), set()
    for k in range(100):
        moved = {name: x * (1 - k / 200) for name, x in params.items()}
        answer, state = measure(state, moved, np.float32(X), np.float32(Y))
        assert answer.value.dtype == jnp.float32
        counts.add((loss.calls, measure._cache_size()))
    assert len(counts) == 1
    top = largest(hessian(moved), "linf")
    assert float(answer.value) == pytest.approx(top, rel=1e-3)


def test_after_a_value_that_is_not_finite():
    tracker = geodiag_jax.tracker(logistic, "l2")
    measure = jax.jit(tracker.measure)
    params = logistic_params()
    _, before = measure(tracker.init(params), params, X, Y)
    answer, state = measure(before, {**params, "b": jnp.nan}, X, Y)
    assert np.isnan(answer.value)
    assert int(state.count) == 0  # the next is cold
    np.testing.assert_array_equal(flat(state.witness), flat(before.witness))
    answer, _ = measure(state, params, X, Y)
    assert float(answer.value) == pytest.approx(largest(hessian(params), "l2"), rel=1e-6)


def test_a_negative_eigenvalue_and_fewer_directions_than_steps():
    """H = diag(−1, −2, −2, −3): three distinct eigenvalues, so four steps span no new direction."""
    diagonal = jnp.asarray([-1.0, -2.0, -2.0, -3.0])
    tracker = geodiag_jax.tracker(lambda w: jnp.sum(diagonal * w**2) / 2)
    answer, _ = tracker.measure(tracker.init(jnp.zeros(4)), jnp.zeros(4))
    assert float(answer.value) == pytest.approx(-1.0, rel=1e-9)


def test_no_positive_curvature_in_a_norm_that_is_not_quadratic():
    """H = −diag(1, 2, 3): no d of ‖d‖∞ = 1 has more than −1, and the origin of the ball is none."""
    tracker = geodiag_jax.tracker(lambda w: -jnp.sum(jnp.arange(1.0, 4.0) * w**2) / 2, "linf")
    point = jnp.asarray([1.0, 2.0, 3.0])
    state = tracker.init(point)
    for _ in range(3):
        answer, state = tracker.measure(state, point)
        d = np.asarray(state.witness["x"])
        assert np.max(np.abs(d)) == 1
        assert float(answer.value) == pytest.approx(-(d**2) @ [1, 2, 3], rel=1e-12)
        assert float(answer.value) <= -1
    answer, state = tracker.measure(tracker.init(point), jnp.zeros(3))
    assert np.isnan(answer.value)  # no gradient either: there is nothing to begin with
    assert int(state.count) == 0


def test_a_loss_over_what_the_users_trace_holds():
    """A loss made inside vmap closes over a traced number: measurements must not be mixed up."""

    @jax.jit
    @jax.vmap
    def top(c):
        inner = {"c": [c]}
        tracker = geodiag_jax.tracker(lambda w: inner["c"][0] * jnp.sum(w**2 * jnp.arange(1, 4)))
        return tracker.measure(tracker.init(jnp.asarray(W[:3])), jnp.asarray(W[:3]))[0].value

    np.testing.assert_allclose(top(jnp.asarray([1.0, 5.0])), [6.0, 30.0], rtol=1e-9)


@pytest.mark.parametrize("check", [0, -1, 2.0, True])
def test_check(check):
    with pytest.raises(errors.ArgumentError, match="check= must be a positive integer"):
        geodiag_jax.tracker(logistic, check=check)
