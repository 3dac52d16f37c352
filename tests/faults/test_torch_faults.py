"""A fault at each call that a measurement makes: no trace is left, and the next one is right.

Faults come at Hessian-vector products, norms, losses, forward and backward passes, and the data;
as an error, as the user's Ctrl-C and as exhausted memory. In the fast run each site has one of them
at its first call, with some later calls; in the slow one all have all of them.
"""

from __future__ import annotations

import gc
import sys

import pytest
import torch

from geodiag_torch.oracle import TorchOracle
from tests.faults.injector import ERRORS, ORACLE, Injected, Injector, first_of_each, thinned
from tests.faults.torch_cases import MEASUREMENTS, Case, said
from tests.geodiag_torch.models import fingerprint

pytestmark = pytest.mark.usefixtures("old_things_frozen")

LATER = 2  # calls of each measurement that are not the first of their site, in the fast run
FAST = [name for name in MEASUREMENTS if name != "spectral certificate"]


@pytest.fixture
def unraisable(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    return seen


def from_us(e):
    """Whether an injected fault is at the bottom of this exception."""
    while e is not None and not isinstance(e, Injected):
        e = e.__cause__
    return e is not None


class Trial:
    """One measurement, what it says when nothing disturbs it, and its calls."""

    def __init__(self, name):
        self.injector = Injector()
        self.case = Case(self.injector)
        self.measure, self.batches, self.options = MEASUREMENTS[name]
        self.problem = self.new()
        with self.injector.everywhere(TorchOracle):
            self.measure(self.problem)  # the check of products, once per model, is not part of it
            self.before = fingerprint(self.case.model, self.case.optimizer)
            self.calls, self.answer = self.injector.record(lambda: self.measure(self.problem))
        assert self.untouched()

    def new(self):
        return self.case.problem(self.batches, **self.options)

    def untouched(self):
        return fingerprint(self.case.model, self.case.optimizer) == self.before

    def fault(self, at, error, again):
        """Inject it, then measure on each of ``again``: "same" or "new" problem."""
        site = self.calls[at]
        with self.injector.everywhere(TorchOracle):
            answer, raised = self.injector.inject(
                lambda: self.measure(self.problem), at, error, site
            )
            if raised is None:  # only where it looks like a backward pass that does not exist
                assert (error, site.split()[0]) == (RuntimeError, "backward"), site
                close(answer, self.answer)
            else:
                assert from_us(raised), f"{site}: {raised!r}"
                interrupts = isinstance(raised, KeyboardInterrupt)
                assert interrupts == (error is KeyboardInterrupt), site
            assert self.untouched(), site
            for which in again:
                problem = self.problem if which == "same" else self.new()
                assert said(self.measure(problem)) == said(self.answer), f"{site}, {which}"


def close(answer, undisturbed):
    """Finite differences in float64 agree with products to 4e-11, and so do values to far more than
    this, which leaves room for what a search makes of it."""
    if isinstance(answer, list):
        for a, b in zip(answer, undisturbed, strict=True):
            close(a, b)
    elif isinstance(answer, dict):
        close(list(answer.values()), list(undisturbed.values()))
    elif isinstance(answer, torch.Tensor):
        torch.testing.assert_close(answer, undisturbed, rtol=1e-6, atol=1e-9)
    else:
        assert float(answer) == pytest.approx(float(undisturbed), rel=1e-6)


def some(trial):
    """Each site's first call with one of the faults, and some later calls."""
    chosen = first_of_each(trial.calls) + thinned(trial.calls, LATER)
    turn = len(trial.calls)  # so that not every measurement begins with the same fault
    return [
        (at, ERRORS[(turn + i) % len(ERRORS)], [("same", "new")[i // 3 % 2]])
        for i, at in enumerate(chosen)
    ]


def sweep(trial, plan, unraisable):
    for number, (at, error, again) in enumerate(plan):
        trial.fault(at, error, again)
        if number % 50 == 0:
            gc.collect()
    gc.collect()
    assert trial.injector.raised == len(plan)
    assert unraisable == []


@pytest.mark.parametrize("name", FAST)
def test_a_fault_at_every_site(name, unraisable):
    trial = Trial(name)
    sweep(trial, some(trial), unraisable)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_fault_at_every_call(name, unraisable):
    trial = Trial(name)
    plan = [(at, error, ["same", "new"]) for at in range(len(trial.calls)) for error in ERRORS]
    sweep(trial, plan, unraisable)


def test_so_many_sites_are_reached(record_property):
    """The faults above are as many as is claimed: an injector that sees little finds little."""
    trials = [Trial(name) for name in FAST]
    counts = {
        "sites": sum(len(set(t.calls)) for t in trials),
        "calls": sum(len(t.calls) for t in trials),
        "injections": sum(len(some(t)) for t in trials),
    }
    record_property("faults in torch", counts)
    print(f"\nfaults in torch: {counts}")
    kinds = {call.split(" <")[0].rpartition(".")[2] for t in trials for call in t.calls}
    assert {*ORACLE, "forward", "backward", "criterion", "iteration", "batch"} <= kinds
    assert {"value", "lmo", "lmos", "bind", "envelope", "metric", "inverse_metric"} <= kinds
    assert counts["sites"] >= 230
    assert counts["calls"] >= 1200
