"""A fault at the calls that a measurement makes in JAX: while a loss is traced, in norms and data.

An error while a program is traced may mean that it cannot be traced: it then runs eagerly, which is
a right answer too. The next measurement is the one that nothing has disturbed, bit for bit. In the
fast run a few calls have a fault, since each means to trace and compile anew; in the slow one every
site has all of them.
"""

from __future__ import annotations

import random
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
import geodiag_jax
from geodiag.records import read_records
from geodiag.solvers.rayleigh import SteepestDirection
from geodiag_jax.oracle import JaxOracle
from tests.faults.injector import ERRORS, Injected, Injector, first_of_each, thinned
from tests.faults.jax_cases import MEASUREMENTS, PARAMS, X, Y, new_loss, new_problem, said

FEW = {"l2 on batches": 3, "differences": 4, "remainder": 3}  # faults in the fast run


@pytest.fixture(autouse=True)
def unraisable(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    yield
    assert seen == []


def from_us(e):
    while e is not None and not isinstance(e, Injected):
        e = e.__cause__ or e.__context__
    return e is not None


def state():
    """What a measurement must leave as it is."""
    kept = {name: np.asarray(x).tobytes() for name, x in PARAMS.items()}
    data, modes = (X.tobytes(), Y.tobytes()), (jax.config.jax_enable_x64, jax.config.jax_debug_nans)
    return kept, data, modes, random.getstate(), str(np.random.get_state())


class Trial:
    def __init__(self, name, injector):
        self.measure, self.batches, self.options = MEASUREMENTS[name]
        self.injector = injector
        problem = self.new()
        self.calls, self.answer = self.injector.record(lambda: self.measure(problem))
        self.before = state()

    def new(self):
        return new_problem(self.injector, self.batches, **self.options)

    def fault(self, at, error):
        site, problem = self.calls[at], self.new()
        answer, raised = self.injector.inject(lambda: self.measure(problem), at, error, site)
        if raised is None:
            assert error is not KeyboardInterrupt, site
            close(answer, self.answer)
        else:
            assert from_us(raised), f"{site}: {raised!r}"
            assert isinstance(raised, KeyboardInterrupt) == (error is KeyboardInterrupt), site
        assert state() == self.before, site
        again = self.measure(problem)
        if raised is None and error is RuntimeError:
            close(
                again, self.answer
            )  # by reverse mode, if it looks as if there were no forward one
        else:
            assert said(again) == said(self.answer), f"{site}, {error}"


def close(answer, undisturbed):
    """An eager search and a compiled one round differently, by far less than this in float64."""
    if isinstance(answer, list):
        for a, b in zip(answer, undisturbed, strict=True):
            close(a, b)
    elif isinstance(answer, dict):
        for name, x in answer.items():
            np.testing.assert_allclose(x, undisturbed[name], rtol=1e-6, atol=1e-9)
    else:
        assert float(answer) == pytest.approx(float(undisturbed), rel=1e-6)


def sweep(name, plan_of):
    injector = Injector()
    with injector.everywhere(JaxOracle):
        trial = Trial(name, injector)
        plan = plan_of(trial.calls)
        for at, error in plan:
            trial.fault(at, error)
    assert injector.raised == len(plan)
    return trial.calls, plan


@pytest.mark.parametrize("name", FEW)
def test_a_fault_at_some_sites(name):
    def some(calls):
        sites = first_of_each(calls)
        chosen = sites[:: -(-len(sites) // FEW[name])]
        return [(at, ERRORS[i % len(ERRORS)]) for i, at in enumerate(chosen)]

    calls, plan = sweep(name, some)
    print(f"\nfaults in JAX, {name}: {len(set(calls))} sites, {len(plan)} faults")


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_fault_at_every_site(name):
    def all_of_them(calls):
        chosen = first_of_each(calls) + thinned(calls, 4)
        return [(at, error) for at in chosen for error in ERRORS]

    calls, plan = sweep(name, all_of_them)
    print(f"\nfaults in JAX, {name}: {len(set(calls))} sites, {len(plan)} faults")


def test_accidents_while_tracing_do_not_slow_down_what_follows():
    """The program of the next measurement is compiled, as if nothing had happened."""
    injector = Injector()

    def measure(problem):
        oracle = problem.at()
        return oracle.run(SteepestDirection(geodiag.norms.Linf()), oracle.gradient()).steepest

    with injector.everywhere():
        problem = new_problem(injector, False)
        calls, answer = injector.record(lambda: measure(problem))
        at = next(i for i, call in enumerate(calls) if call.startswith("Linf.lmo"))
        for _ in range(3):
            problem = new_problem(injector, False)
            instead, raised = injector.inject(
                lambda p=problem: measure(p), at, MemoryError, calls[at]
            )
            assert raised is None
            close(instead, answer)
            again, then = injector.record(lambda p=problem: measure(p))
            assert said(then) == said(answer)
            # Compiled, a program calls the norm while it is traced, and never again.
            assert len(injector.record(lambda p=problem: measure(p))[0]) == 0 < len(again)


class TestMonitor:
    def run(self, injector, path, loss):
        monitor = geodiag_jax.Monitor(
            loss, "l2", data=(X, Y), lr=0.1, every=1, log=path, max_hvps=6
        )
        points = [PARAMS]
        for step in range(3):
            points.append(
                {name: x - 0.01 * (step + 1) * jnp.ones_like(x) for name, x in PARAMS.items()}
            )
            try:
                monitor.observe(step, points[-2], points[-1])
            except KeyboardInterrupt:
                self.interrupts += 1
        monitor.close()
        return monitor

    @pytest.mark.parametrize(
        "errors", [(), pytest.param(ERRORS, marks=pytest.mark.slow)], ids=["in turn", "all"]
    )
    def test_a_fault_in_the_second_measurement(self, errors, tmp_path, capsys):
        """In the compiled calls' surroundings; two runs have traced and compiled all of it."""
        injector, self.interrupts = Injector(), 0
        loss = new_loss(injector)
        with injector.everywhere(JaxOracle):
            for name in ("first", "second"):
                self.run(injector, tmp_path / f"{name}.jsonl", loss)
            calls, undisturbed = injector.record(
                lambda: self.run(injector, tmp_path / "undisturbed.jsonl", loss)
            )
            ends = [i for i, call in enumerate(calls) if call.startswith("_Lines.write")]
            sites = {calls[at]: at for at in range(ends[0] + 1, ends[1] + 1)}
            for number, (site, at) in enumerate(sites.items()):
                for error in errors or (ERRORS[number % len(ERRORS)],):
                    path, self.interrupts = tmp_path / f"{number}{error.__name__}.jsonl", 0
                    _, raised = injector.inject(
                        lambda p=path: self.run(injector, p, loss), at, error, site
                    )
                    assert raised is None, f"{site}: {raised!r}"
                    assert self.interrupts == (error is KeyboardInterrupt), site
                    found = read_records(path)
                    assert {r.step for r in found} >= {0, 2}, site
                    expected = undisturbed.records[-1].sharpness
                    assert found[-1].sharpness == pytest.approx(expected, rel=1e-3), site
        assert len(sites) >= 8
