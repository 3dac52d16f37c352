"""Same seed, same machine, same bits: in one process, in two, and in a run that is taken up again.

What is compared is exact: hexadecimal floats and hashes of every entry of the direction.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import geodiag
from tests.conformance.test_parity import PROBLEMS, _float64
from tests.determinism.measured import LONG, MEASUREMENTS, bits, found, training

ROOT = Path(__file__).parents[2]
_ = _float64  # a fixture of every test in here, as in there


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def process(*arguments, threads=1, **env):
    """The bits that a fresh interpreter finds."""
    counts = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.determinism.measured", *arguments],
        cwd=ROOT, env={**os.environ, **counts, **env}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["short", pytest.param("long", marks=pytest.mark.slow)])
def test_in_one_process_and_in_another(kind):
    """Twice in this one, where JAX compiles the first time only, and in a fresh one, in which
    Python's sets have another order."""
    first, second = (found(kind == "long") for _ in range(2))
    assert first == second
    assert process(kind, PYTHONHASHSEED="4242") == first


def test_both_kinds_are_all():
    assert {"torch, linf", "jax, linf", "numpy, spectral", "matrix, enumerate"} <= set(MEASUREMENTS)
    assert set(MEASUREMENTS) > LONG > {"jax, spectral, certified"}


def test_another_seed_is_another_search():
    """Else the tests above could compare what no seed enters."""
    found = {
        bits(geodiag.sharpness(PROBLEMS["torch"](), "linf", estimator="frank_wolfe", seed=seed))
        for seed in range(3)
    }
    assert len(found) == 3


def test_measuring_leaves_the_next_measurement_as_it_was():
    """Nothing that one measurement keeps changes another: neither a cache nor a random state."""
    problem = PROBLEMS["jax"]()
    alone = bits(geodiag.sharpness(PROBLEMS["jax"](), "spectral"))
    for norm in ("l2", "linf"):
        geodiag.sharpness(problem, norm, seed=7)
    assert bits(geodiag.sharpness(problem, "spectral")) == alone


def test_records_of_a_run():
    """All but the seconds and the id; of a run taken up again from a state through JSON too."""
    whole = training()
    assert repr(training()) == repr(whole)
    assert repr(training(resumed=True)) == repr(whole)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_equal_numbers_of_threads(threads):
    assert process("wide", threads=threads) == process("wide", threads=threads)


@pytest.mark.slow
def test_other_numbers_of_threads_agree():
    """A sum in another order: each product is off by some hundred ε, the Ritz value of twelve of
    them by about as much: 1e-10 leaves three digits."""
    one, two = (float.fromhex(process("wide", threads=n)["wide"].split()[0]) for n in (1, 2))
    assert one == pytest.approx(two, rel=1e-10)
