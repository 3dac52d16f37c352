"""A signal handler that runs in the middle of a pass finds the model, and all else, as it is."""

from __future__ import annotations

import random
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
import geodiag_torch
from geodiag_torch.state.interrupts import uninterrupted

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")


class Job:
    """A model, what its loss reaches beside it, and a handler that saves both."""

    def __init__(self, monkeypatch, number):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1)
        )
        self.critic, self.count = nn.BatchNorm1d(1), {"n": 0}
        self.data = torch.randn(16, 3), torch.randn(16, 1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.own = list(self.model.parameters())
        self.seen = threading.local()  # which measurements leave alone
        self.seen.all = []
        self.number, self.rings = number, False
        before = signal.signal(number, lambda *_: self.seen.all.append(self.state()))
        self.restore = lambda: signal.signal(number, before)

    def state(self):
        assert all(p is q for p, q in zip(self.model.parameters(), self.own, strict=True))
        tensors = [*self.model.state_dict().values(), *self.critic.state_dict().values()]
        drawn = str(random.getstate()), str(np.random.get_state()), torch.get_rng_state().tolist()
        return [t.tolist() for t in tensors], self.count["n"], drawn

    def loss(self, model, batch):
        self.count["n"] += 1
        random.random(), np.random.random()
        if self.rings:
            signal.raise_signal(self.number)
        return (self.critic(model(batch[0])) - batch[1]).square().mean()


@pytest.mark.parametrize("number", ["SIGUSR1", "SIGTERM"])
@pytest.mark.parametrize("engine", ["graph", "recompute", "finite-difference"])
def test_what_a_handler_saves_is_the_model(monkeypatch, engine, number):
    job = Job(monkeypatch, getattr(signal, number))
    try:
        before, job.rings = job.state(), True
        told = geodiag.sharpness(
            job.model, loss_fn=job.loss, data=job.data, engine=engine, max_hvps=3
        )
        job.rings = False
        quiet = geodiag.sharpness(
            job.model, loss_fn=job.loss, data=job.data, engine=engine, max_hvps=3
        )
    finally:
        job.restore()
    assert len(job.seen.all) >= 3
    assert all(state == before for state in job.seen.all)
    assert told.value == quiet.value
    assert job.state() == before


def test_other_parameters_too_while_they_are_as_before_the_step(monkeypatch):
    """With Adam S waits for the step, and what is not measured is put back for its time."""
    job = Job(monkeypatch, signal.SIGUSR1)
    x, _ = job.data
    try:
        geodiag_torch.attach(
            job.optimizer, job.model, loss_fn=job.loss, data=job.data, every=1, where="0.*",
            max_hvps=3,
        )  # fmt: skip
        job.loss(job.model, job.data).backward()
        job.optimizer.register_step_post_hook(lambda *_: None)
        job.rings = True
        job.optimizer.step()
        job.rings = False
    finally:
        job.restore()
    after = job.state()[0]
    assert job.seen.all
    assert job.seen.all[-1][0] == after
    assert x is job.data[0]


def test_what_waits_for_the_end_of_a_pass():
    """Modules sharded over ranks: between two collectives nothing can be given back."""
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append("handled"))
    try:
        uninterrupted(
            lambda run: run(),
            lambda: (signal.raise_signal(signal.SIGUSR1), seen.append("the pass")),
            waits=True,
        )
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == ["the pass", "handled"]
