"""No growth over many measurements: arrays alive, memory that Python holds, compilations.

The first round takes every path that later ones take (a search from nothing, one or two steps from
the last witness, a glance at every fifth, a cold check at every twentieth), so that all is compiled
after it. Then nothing may be left behind: not one array and no compilation. Of Python's memory the
interpreter keeps some 30 kB for objects to come, however many measurements there are; a result held
back would be 2 kB each.
"""

from __future__ import annotations

import collections
import gc
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from tests.geodiag_jax.models import X, Y, logistic, logistic_params

pytestmark = pytest.mark.usefixtures("old_things_frozen")
ROUND = 21
SPARE = 100_000  # bytes


@pytest.fixture(scope="module")
def compilations():
    """How often XLA compiled, by the name of the event."""
    seen = collections.Counter()

    def note(name, seconds, **_):
        seen[name.rsplit("/", 1)[-1]] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    return seen


def walk(problem, norm, count, kept=None):
    """Warm measurements along a path of the parameters; the last result."""
    for step in range(count):
        point = {name: x * (1 + 0.01 * (step % 7)) for name, x in logistic_params().items()}
        kept = geodiag.sharpness(problem, norm, params=point, start=kept, rtol=1e-2)
    return kept


def afresh(count):
    """Problems made anew of the same loss, on new batches of the same shapes."""
    for step in range(count):
        data = (X + 0.01 * (step % 7), Y)
        geodiag.sharpness(logistic, "l2", params=logistic_params(), data=data, max_hvps=4)


def state():
    gc.collect()
    return len(jax.live_arrays()), tracemalloc.get_traced_memory()[0]


def check_no_growth(run, count, compilations):
    run()
    tracemalloc.start()
    try:
        run(max(ROUND, count // 4))  # caches fill, and tracing itself allocates at first
        compilations.clear()
        arrays, held = state()
        run(count)
        more, still = state()
    finally:
        tracemalloc.stop()
    assert more == arrays
    assert compilations["backend_compile_duration"] == 0
    assert still - held < SPARE


def kept_problem(norm, count, compilations):
    problem = geodiag.problem(logistic, params=logistic_params(), data=(X, Y))
    last = []

    def run(times=ROUND):
        last[:] = [walk(problem, norm, times, *last)]

    check_no_growth(run, count, compilations)


def test_a_kept_problem_does_not_grow(compilations):
    kept_problem("linf", 80, compilations)


def test_problems_made_anew_do_not_grow(compilations):
    check_no_growth(lambda times=7: afresh(times), 80, compilations)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf", "spectral"])
def test_a_thousand_measurements(norm, compilations):
    kept_problem(norm, 1000, compilations)


def test_a_point_is_freed_with_its_oracle():
    """A kept linearization holds the tape of a batch: it goes with its oracle."""
    problem = geodiag.problem(logistic, params=logistic_params(), data=(X, Y))
    geodiag.sharpness(problem, "l2", max_hvps=4)
    gc.collect()
    before = len(jax.live_arrays())
    oracle = problem.at()
    oracle.hvp({"b": jnp.ones(()), "w": jnp.ones(4)})
    assert len(jax.live_arrays()) > before
    del oracle
    assert len(jax.live_arrays()) == before, "freed by reference counts alone"
    assert np.isfinite(float(problem.at().loss()))
