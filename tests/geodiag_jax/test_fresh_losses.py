"""Losses that are redefined in each iteration of a loop: known again where that is safe.

The loss is c Σ s_k w_k²/2, so S = c max s. Traces are counted by a function that it alone calls.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from geodiag_jax import loss_contents

W = {"w": jnp.ones(3)}
SIZES = jnp.array([1.0, 2.0, 3.0])
FACTORS = np.ones(1)


def half_squares(w, s):
    return jnp.inner(s, w**2) / 2


def of_arrays(sizes, factor=1.0):
    def loss(p):
        return factor * half_squares(p["w"], sizes)

    return loss


def of_numpy(factors):
    return lambda p: factors[0] * half_squares(p["w"], SIZES)


def of_list(factors):
    return lambda p: factors[-1] * half_squares(p["w"], SIZES)


def of_class(settings):
    return lambda p: settings.factor * half_squares(p["w"], SIZES)


def of_global():
    return lambda p: FACTORS[0] * half_squares(p["w"], SIZES)


def measured(loss):
    return geodiag.sharpness(loss, params=W, engine="recompute")


@pytest.fixture(autouse=True)
def _nothing_seen(monkeypatch):
    monkeypatch.setattr(loss_contents, "_seen", type(loss_contents._seen)())


@pytest.fixture
def traces(monkeypatch):
    count = []
    plain = jnp.inner
    monkeypatch.setattr(jnp, "inner", lambda *a, **k: (count.append(1), plain(*a, **k))[1])
    return count


@pytest.mark.parametrize(
    "make",
    [
        lambda: of_arrays(SIZES),
        lambda: functools.partial(lambda s, p: half_squares(p["w"], s), SIZES),
        lambda: functools.partial(lambda p, s: half_squares(p["w"], s), s=SIZES),
    ],
)
def test_the_same_loss_defined_anew_is_not_compiled_again(make, traces):
    first = measured(make())
    before = len(traces)
    for _ in range(3):
        again = measured(make())
        assert again.value == first.value == pytest.approx(3.0)
        assert again.notes == ()
    assert len(traces) == before > 0


def test_other_arrays_and_numbers_make_another_loss():
    assert measured(of_arrays(SIZES)).value == pytest.approx(3.0)
    other = measured(of_arrays(2 * SIZES))
    assert other.value == pytest.approx(6.0)
    assert other.notes == (loss_contents.REDEFINED,)  # said once
    assert measured(of_arrays(3 * SIZES)).notes == ()
    assert measured(of_arrays(SIZES, factor=5.0)).value == pytest.approx(15.0)
    assert measured(of_arrays(SIZES)).value == pytest.approx(3.0)


class Callable:
    def __call__(self, p):
        return half_squares(p["w"], SIZES)


WRAPPED = {"jit": jax.jit, "checkpoint": jax.checkpoint, "object": lambda _: Callable()}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_is_made_around_a_loss_anew_is_said_once(name):
    said = []
    for _ in range(3):
        oracle = geodiag.problem(WRAPPED[name](of_arrays(SIZES)), params=W).at()
        said.append(loss_contents.REDEFINED in oracle.notes)
    assert said == [False, True, False]


@pytest.mark.parametrize("kind", ["numpy", "list", "class", "object", "global"])
def test_what_may_have_changed_is_not_taken_for_the_same(kind, monkeypatch):
    factors = np.ones(1) if kind == "numpy" else [1.0]
    settings = type("Other", (), {"factor": 1.0})
    settings = settings() if kind == "object" else settings
    monkeypatch.setattr(f"{__name__}.FACTORS", np.ones(1))

    def make():
        if kind == "global":
            return of_global()
        if kind in ("class", "object"):
            return of_class(settings)
        return (of_numpy if kind == "numpy" else of_list)(factors)

    def change():
        if kind == "global":
            FACTORS[0] = 4.0
        elif kind in ("class", "object"):
            settings.factor = 4.0
        else:
            factors[0] = 4.0

    assert measured(make()).value == pytest.approx(3.0)
    change()
    changed = measured(make())
    assert changed.value == pytest.approx(12.0)
    assert changed.notes == (loss_contents.REDEFINED,)
    assert "what the loss reads has changed" in changed.notes[0]
