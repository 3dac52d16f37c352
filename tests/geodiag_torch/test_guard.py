"""What ``guard=`` names is given back; what nothing gives back is said in the first record."""

from __future__ import annotations

import functools
import itertools
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
import geodiag_torch
from geodiag import errors
from tests.geodiag_torch.models import regression

mse = nn.functional.mse_loss


class Counted:
    """Its state is in a slot that no look finds."""

    __slots__ = ("_n",)

    def __init__(self):
        self._n = 0

    def state_dict(self):
        return {"n": self._n}

    def load_state_dict(self, state):
        self._n = state["n"]

    def count(self):
        self._n += 1
        return self._n


def made(kind):
    """A state, a function that changes it, and one that tells it."""
    if kind == "torch.Generator":
        g = torch.Generator().manual_seed(0)
        return g, lambda: float(torch.rand((), generator=g)), lambda: g.get_state().tolist()
    if kind == "numpy":
        rng = np.random.default_rng(0)
        return rng, rng.random, lambda: rng.bit_generator.state
    if kind == "module":
        norm, x = nn.BatchNorm1d(1), torch.linspace(0, 1, 8)[:, None]
        tell = lambda: [t.tolist() for t in norm.state_dict().values()]  # noqa: E731
        return norm, lambda: float(norm(x).square().mean().detach()), tell
    counted = Counted()
    return counted, counted.count, counted.state_dict


def loss_with(factor):
    """A loss that reaches ``factor`` by an iterator, so that its state is not found."""
    hidden = iter([factor] * 10**4)
    return lambda m, b: mse(m(b[0]), b[1]) * (1 + 0.1 * next(hidden)())


@pytest.mark.parametrize("kind", ["state_dict", "torch.Generator", "numpy", "module"])
def test_what_is_named_is_given_back(kind):
    model, data, _ = regression()
    state, factor, said = made(kind)
    before = said()
    result = geodiag.sharpness(model, loss_fn=loss_with(factor), data=data, guard=[state])
    assert said() == before
    assert not any("changes from pass to pass" in note for note in result.notes)


def test_what_is_not_named_is_said():
    model, data, _ = regression()
    result = geodiag.sharpness(model, loss_fn=loss_with(Counted().count), data=data)
    assert any("pass what holds its state in guard=[…]" in note for note in result.notes)
    assert result.bound is geodiag.Bound.LOWER


def of_iterator():
    steps = itertools.count(1)
    return lambda m, b: mse(m(b[0]), b[1]) + 0 * next(steps), "the iterator steps"


def of_cache():
    @functools.lru_cache
    def scale(x):
        return 1.0

    return lambda m, b: mse(m(b[0]), b[1]) * scale(b[0].mean() + 0), "the cache of scale"


@pytest.mark.parametrize("make", [of_iterator, of_cache])
def test_what_cannot_be_given_back_is_named_in_the_first_record(make):
    model, (x, y), _ = regression()
    loss, named = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = geodiag_torch.attach(optimizer, model, loss_fn=loss, data=(x, y), every=1)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model, (x, y)).backward()
        optimizer.step()
    first, second = monitor.records
    assert "what cannot be given back" in first.note
    assert named in first.note
    assert "given back" not in second.note


@pytest.mark.parametrize("wrong", [3, "loss", [1.5], Counted])
def test_what_has_no_state_is_refused(wrong):
    model, data, _ = regression()
    with pytest.raises(errors.ArgumentError, match="guard= takes modules, generators"):
        geodiag.sharpness(model, criterion=mse, data=data, guard=wrong)


CALLS = []


def hooked():
    """A model of a class of its own; what it reaches changes between records."""

    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 1)

        def forward(self, x):
            if "LATER" in globals():
                LATER.append(1)  # noqa: F821
            return self.inner(x)

    return Hooked()


def forward(self, x):
    CALLS.append(1)
    return self.inner(x)


class Counting(nn.Linear):
    """It counts its calls in an attribute, and in one of its class."""

    counts = ()

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        type(self).total = getattr(type(self), "total", 0) + 1
        return super().forward(x)


def add_hook(model):
    model.inner.register_forward_hook(lambda *_: CALLS.append(1))


def exchange_module(model):
    model.inner = Counting(2, 1)
    model.inner.calls = Counting.total = 0


def exchange_method(model):
    type(model).forward = forward


def exchange_code(model):
    type(model).forward.__code__ = forward.__code__


def exchange_class(model):
    other = hooked()
    exchange_method(other)
    model.__class__ = type(other)


def exchange_variable(model):
    del globals()["SOON"]
    globals()["LATER"] = CALLS


@pytest.mark.parametrize(
    "change",
    [
        add_hook,
        exchange_module,
        exchange_method,
        exchange_code,
        exchange_class,
        exchange_variable,
    ],
)
def test_what_is_reached_later_is_given_back_too(change, monkeypatch):
    """State is looked for again where something has changed since the last record."""
    monkeypatch.setitem(globals(), "SOON", None)
    monkeypatch.setitem(globals(), "LATER", None)
    del globals()["LATER"]
    CALLS.clear()
    model = hooked()
    problem = geodiag.problem(model, criterion=mse, data=(torch.ones(4, 2), torch.ones(4, 1)))
    problem.at().loss()
    change(model)
    problem.at().loss()
    assert not CALLS
    model(torch.ones(4, 2))
    assert CALLS or model.inner.calls == 1
    CALLS.clear()
    problem.at().loss()
    assert not CALLS
    if change is exchange_module:
        assert model.inner.calls == Counting.total == 1


def plain_problem(model):
    return geodiag.problem(
        model,
        loss_fn=lambda m, b: m(b[0]).square().mean() * (1 + (m.extra.dtype == torch.float64)),
        data=(torch.ones(4, 2),),
    )


@pytest.mark.parametrize("made", [{"device": "meta"}, {"dtype": torch.bits8}], ids=str)
def test_tensors_that_cannot_be_compared(made):
    model = hooked()
    model.extra = extra = torch.empty(2, **made)
    problem = plain_problem(model)
    assert float(problem.at().loss()) == float(problem.at().loss())
    assert model.extra is extra


def test_an_exchanged_dtype_is_seen():
    model = hooked()
    model.extra = torch.ones(2)
    problem = plain_problem(model)
    before = float(problem.at().loss())
    model.extra.data = model.extra.data.double()
    assert float(problem.at().loss()) == 2 * before


@pytest.mark.parametrize(
    "kept",
    [
        lambda x: x,
        lambda x: [x],
        lambda x: {"a": ((x,),)},
        lambda x: SimpleNamespace(deep=SimpleNamespace(x=x)),
    ],
    ids=["tensor", "list", "nested", "object"],
)
def test_no_graph_outlives_its_step(kept):
    model = hooked()
    model.extra = torch.ones(2)
    problem = plain_problem(model)
    for _ in range(2):
        out = model(torch.ones(4, 2))
        model.last, alive = kept(out), weakref.ref(out)
        del out
        problem.at().loss()
        assert alive() is not None
        del model.last
        assert alive() is None
