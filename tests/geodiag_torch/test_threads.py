"""Other threads while a model is measured: what trains is not changed, no number is drawn twice."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import geodiag
from geodiag_torch.state import threads
from tests.geodiag_torch.places import run

mse = nn.functional.mse_loss


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 1)
    )


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 4, generator=generator), torch.randn(16, 1, generator=generator)


class Aside:
    """A thread that does something whenever it is asked to, and waits for its end."""

    def __init__(self, run):
        self.run, self.asked, self.done = run, threading.Event(), threading.Event()
        self.over = False
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self):
        while True:
            self.asked.wait()
            self.asked.clear()
            if self.over:
                return
            self.run()
            self.done.set()

    def __call__(self):
        self.asked.set()
        assert self.done.wait(60)
        self.done.clear()

    def close(self):
        self.over = True
        self.asked.set()
        self.thread.join()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("engine", ["graph", "recompute", "finite-difference"])
def test_a_model_that_another_thread_trains_is_trained_as_ever(engine, compiled):
    """A step of the other thread in the middle of each pass, where tensors are lent."""
    x, y = data()
    if compiled:  # something: from then on torch.compile looks into frames
        torch.compile(torch.sin, backend="eager")(x)

    def training(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

        def step():
            optimizer.zero_grad()
            mse(model(x), y).backward()
            optimizer.step()

        return step

    model, alone = net(), net()
    aside, taken = Aside(training(model)), threading.local()
    taken.n = 0

    def criterion(output, target):
        aside()
        taken.n += 1
        return mse(output, target)

    try:
        for _ in range(3):
            with pytest.raises(geodiag.GeodiagError):  # the model is another after each step
                geodiag.sharpness(model, criterion=criterion, data=(x, y), engine=engine)
    finally:
        aside.close()
    step = training(alone)
    for _ in range(taken.n):
        step()
    assert taken.n >= 3
    expected = alone.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_number_is_drawn_twice(dropout):
    model, drawn = net(dropout), []
    aside = Aside(lambda: drawn.append(float(torch.rand((), dtype=torch.float64))))

    def criterion(output, target):
        aside()
        return mse(output, target)

    try:
        problem = geodiag.problem(model, criterion=criterion, data=data(), engine="recompute")
        if dropout:
            with pytest.raises(geodiag.errors.DataError, match="another thread"):
                geodiag.sharpness(problem, max_hvps=4)
        else:
            geodiag.sharpness(problem, max_hvps=4)
    finally:
        aside.close()
    drawn += [float(torch.rand((), dtype=torch.float64)) for _ in range(20)]
    assert len(set(drawn)) >= len(drawn) - (2 if dropout else 0)


def test_no_thread_of_the_parent_holds_the_turn_in_a_forked_child(monkeypatch):
    monkeypatch.setattr(threads, "_passes", threads.turn())  # given back at the end
    ready, over = threading.Event(), threading.Event()

    def hold():
        with threads.turn():
            ready.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait()
    try:
        assert not threads.turn().acquire(blocking=False)
        threads._released()
        assert threads.turn().acquire(blocking=False)
    finally:
        over.set()
        thread.join()


def test_each_thread_finds_its_own_dict():
    found = []

    def look():
        both["c"] = 3
        found.extend([dict(both), {**both}, list(both.items()), both["a"], len(both), "b" in both])

    thread = threading.Thread(target=lambda: (ready.wait(), look()))
    ready = threading.Event()
    thread.start()
    own, lent = {"a": 1}, {"a": 2, "b": 2}
    both = threads.ForEach(own, lent, frozenset([thread.ident]))
    ready.set()
    thread.join()
    assert found == [{"a": 1, "c": 3}, {"a": 1, "c": 3}, [("a", 1), ("c", 3)], 1, 2, False]
    assert own == {"a": 1, "c": 3}
    assert dict(both) == lent == {"a": 2, "b": 2}


@pytest.mark.parametrize("state", ["momentum encoder", "module", "int"])
def test_training_beside_an_idle_thread_is_the_same(state):
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        watched, _ = run(state, "closure", watched=True)
    finally:
        over.set()
        thread.join()
    assert watched == run(state, "closure", watched=False)[0]
