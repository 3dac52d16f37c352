"""Ctrl-C at random moments: what no list of calls can hit, between any two instructions.

The signal comes from the system's timer, and its handler raises KeyboardInterrupt, as Python's own
for SIGINT does. The model is small, so that lending it and giving it back takes much of the time.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch

import geodiag
from geodiag_torch.state.interrupts import uninterrupted
from tests.faults.injector import Injector
from tests.faults.torch_cases import Case, said, sharp, smoothness
from tests.geodiag_torch.models import fingerprint

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a system's timer"),
    pytest.mark.usefixtures("old_things_frozen"),
]

MEASUREMENTS = {
    "graph": (sharp("l2", 6), False),
    "recompute": (sharp("l2", 4), True),
    "ascent": (sharp("linf", 12), False),
    "path": (smoothness("path", "l2"), True),
}


@pytest.fixture
def alarm():
    """SIGALRM as Ctrl-C; gives a function that sends it after so many seconds."""

    def handler(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    # What is raised in a callback of the collector reaches nobody; test tools have such callbacks.
    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.callbacks[:] = callbacks
    assert signal.signal(signal.SIGALRM, before) is handler  # a measurement leaves it in its place


def rounds(alarm, monkeypatch, name, count):
    """Interrupts ``count`` measurements, each at another moment; how many of them it was."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    case = Case(Injector())
    measure, batches = MEASUREMENTS[name]
    problem = case.problem(batches)
    hooks = len(torch.nn.modules.module._global_forward_pre_hooks)
    measure(problem)
    undisturbed, lasts = said(measure(problem)), 1.0
    for _ in range(3):
        began = time.perf_counter()
        measure(problem)
        lasts = min(lasts, time.perf_counter() - began)
    before, interrupted = fingerprint(case.model, case.optimizer), 0
    sdp, rng = torch.backends.cuda.flash_sdp_enabled(), np.random.default_rng(0)
    for _ in range(8 * count):  # some end before their signal comes
        if interrupted == count:
            break
        delay = rng.uniform(1e-5, lasts)
        try:
            alarm(delay)
            measure(problem)
            alarm(0)
            lasts = max(0.7 * lasts, 2e-5)  # measured while the machine did much else
        except KeyboardInterrupt:
            interrupted += 1
        assert fingerprint(case.model, case.optimizer) == before
        assert all(isinstance(p, torch.nn.Parameter) for p in case.model.parameters())
        assert len(torch.nn.modules.module._global_forward_pre_hooks) == hooks
        assert torch.backends.cuda.flash_sdp_enabled() == sdp
        assert not torch._C._autograd._top_saved_tensors_default_hooks(True)
        assert not torch.is_autocast_enabled("cpu")
        assert said(measure(problem)) == undisturbed
    gc.collect()
    assert unraisable == []
    return interrupted


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_some_moments(alarm, monkeypatch, name):
    assert rounds(alarm, monkeypatch, name, 8) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_200_moments(alarm, monkeypatch, name):
    assert rounds(alarm, monkeypatch, name, 200) == 200


class TestWhatWaits:
    """``uninterrupted`` on its own, with real signals of this process to itself."""

    def send(self, number=signal.SIGALRM):
        signal.raise_signal(number)

    def test_around_goes_to_its_end(self, alarm):
        seen = []

        def around(run):
            seen.append("lent")
            self.send()
            seen.append("all of it")
            try:
                return run()
            finally:
                self.send()
                seen.append("given back")

        with pytest.raises(KeyboardInterrupt):
            uninterrupted(around, lambda: seen.append("never"))
        assert seen == ["lent", "all of it", "given back"]

    def test_the_run_is_interrupted_at_once(self, alarm):
        seen = []

        def run():
            self.send()
            seen.append("never")

        with pytest.raises(KeyboardInterrupt):
            uninterrupted(lambda run: run(), run)
        assert seen == []

    def test_a_handler_that_the_run_sets_stays(self, alarm):
        def other(number, frame):
            raise TimeoutError

        before = signal.getsignal(signal.SIGALRM)
        uninterrupted(lambda run: run(), lambda: signal.signal(signal.SIGALRM, other))
        assert signal.getsignal(signal.SIGALRM) is other
        signal.signal(signal.SIGALRM, before)

    def test_a_handler_that_is_put_back_too_late_still_works(self, alarm):
        kept = []
        uninterrupted(lambda run: run(), lambda: kept.append(signal.getsignal(signal.SIGALRM)))
        before = signal.signal(signal.SIGALRM, kept[0])
        with pytest.raises(KeyboardInterrupt):
            self.send()
        signal.signal(signal.SIGALRM, before)

    def test_one_within_the_other(self, alarm):
        seen = []

        def inner(run):
            self.send()
            seen.append("inner")
            return run()

        def outer(run):
            try:
                return run()
            finally:
                seen.append("outer")

        with pytest.raises(KeyboardInterrupt):
            uninterrupted(outer, lambda: uninterrupted(inner, lambda: seen.append("never")))
        assert seen == ["inner", "outer"]

    def test_every_handler_is_back_also_when_one_raises_in_between(self, alarm):
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGALRM)}

        def around(run):
            self.send(signal.SIGINT)
            self.send(signal.SIGALRM)
            return run()

        with pytest.raises(KeyboardInterrupt):
            uninterrupted(around, lambda: None)
        assert {s: signal.getsignal(s) for s in before} == before

    def test_other_threads_measure_too(self):
        case, found = Case(Injector()), []

        def measure():
            found.append(float(geodiag.sharpness(case.problem(), max_hvps=6)))

        thread = threading.Thread(target=measure)
        thread.start()
        thread.join()
        measure()
        assert found[0] == found[1]
