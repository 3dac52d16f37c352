"""Activations that the backward pass recomputes: it must see our leaves, and leave no trace.

The truth is the same module without checkpointing.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import geodiag
from geodiag import errors
from tests.geodiag_torch.models import fingerprint, random_like


class Checkpointed(nn.Module):
    """A block whose activations are recomputed in the backward pass."""

    def __init__(self, block, head):
        super().__init__()
        self.block, self.head = block, head

    def forward(self, x):
        return self.head(checkpoint(self.block, x, use_reentrant=False))


def plain(model):
    return nn.Sequential(model.block, model.head)


def checkpointed(kind):
    torch.manual_seed(0)
    blocks = {
        "linear": (nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 3), (9, 5)),
        "batchnorm": (nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), nn.Linear(6, 3), (9, 5)),
        "attention": (
            nn.TransformerEncoderLayer(4, 2, 8, 0.0, "gelu", batch_first=True),
            nn.Linear(4, 3),
            (9, 2, 4),
        ),
    }
    block, head, shape = blocks[kind]
    x = torch.randn(*shape).double()
    model = Checkpointed(block, head).double()
    return model, (x, torch.randn(*model(x).shape).double())


@pytest.mark.parametrize("engine", ["graph", "recompute"])
@pytest.mark.parametrize("kind", ["linear", "batchnorm", "attention"])
def test_checkpointing_changes_nothing_here_or_elsewhere(kind, engine):
    model, data = checkpointed(kind)
    before = fingerprint(model)
    arguments = {"criterion": nn.MSELoss(), "data": data, "engine": engine}
    problem = geodiag.problem(model, **arguments)
    reference = geodiag.problem(plain(model), **arguments)
    here = problem.at()
    for shift in (0.0, 0.3):
        point = {name: p + shift for name, p in here.point().items()}
        oracle = problem.at(point)
        names = dict(zip(point, reference.space.names, strict=True))
        truth = reference.at({names[k]: p for k, p in point.items()})
        d = random_like(oracle, 0)
        g, h = oracle.gradient(), oracle.hvp(d)
        true_h = truth.hvp({names[k]: x for k, x in d.items()})
        for k in point:
            # The same operations in the same order: equal up to a few roundings.
            torch.testing.assert_close(g[k], truth.gradient()[names[k]], rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(h[k], true_h[names[k]], rtol=1e-11, atol=1e-12)
    live = problem.at()  # sharing the model's storage; its later products may take a shorter way
    d = random_like(live, 0)
    first, second = live.hvp(d), live.hvp(d)
    at_zero = problem.at(live.point()).hvp(d)
    for k in first:
        assert torch.equal(first[k], second[k])
        torch.testing.assert_close(first[k], at_zero[k], rtol=1e-11, atol=1e-12)
    assert fingerprint(model) == before


class Bare(nn.Module):
    """Checkpoints a function that reads a parameter, or a buffer, and runs no module."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 5).double())
        self.head = nn.Linear(6, 3).double()
        self.register_buffer("shift", torch.randn(6).double())
        self.kind = kind

    def hidden(self, x):
        return (
            torch.tanh(x @ self.weight.T)
            if self.kind == "parameter"
            else torch.tanh(x * self.shift)
        )

    def forward(self, x):
        if self.kind == "buffer":
            x = x @ self.weight.T
        return self.head(checkpoint(self.hidden, x, use_reentrant=False))


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_products_of_a_frozen_point_stay_when_the_model_moves_on(kind):
    """A function that no module runs is recomputed with the oracle's tensors all the same."""
    model = Bare(kind)
    x, y = torch.randn(9, 5).double(), torch.randn(9, 3).double()
    problem = geodiag.problem(model, criterion=nn.MSELoss(), data=(x, y))
    point = problem.at().point()
    truth = problem.at(point)
    d = random_like(truth, 0)
    expected = {k: v.clone() for k, v in truth.hvp(d).items()}
    frozen = problem.at(point)
    frozen.hvp(d)  # whatever it finds out about the graph, it does here
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5
    for k, v in frozen.hvp(d).items():
        torch.testing.assert_close(v, expected[k], rtol=1e-11, atol=1e-12)


class Reentrant(Checkpointed):
    """The other variant, which ``autograd.grad`` does not reach through."""

    def forward(self, x):
        first, *rest = self.block
        hidden = checkpoint(nn.Sequential(*rest), first(x), use_reentrant=True)
        return self.head(hidden)


def reentrant():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
    x, y = torch.randn(9, 5).double(), torch.randn(9, 3).double()
    return Reentrant(block, nn.Linear(6, 3)).double(), (x, y)


@pytest.mark.parametrize("where", [None, "block"])
@pytest.mark.parametrize("engine", ["auto", "finite-difference"])
def test_reentrant_checkpoints_are_measured_by_differences(engine, where):
    model, data = reentrant()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = fingerprint(model)
    ask = {"criterion": nn.MSELoss(), "data": data, "where": where}
    oracle = geodiag.problem(model, engine=engine, **ask).at()
    truth = geodiag.problem(plain(model), criterion=nn.MSELoss(), data=data).at()
    names = dict(zip([n for n, _ in model.named_parameters()], truth.names, strict=True))
    d = random_like(oracle, 0)
    whole = {names[n]: d.get(n, torch.zeros_like(p)) for n, p in model.named_parameters()}
    gradient, product = oracle.gradient(), oracle.hvp(d)
    for name, x in product.items():
        torch.testing.assert_close(gradient[name], truth.gradient()[names[name]])
        # Central differences in float64: ε^{2/3} = 4e-11, times how the curvature varies.
        torch.testing.assert_close(x, truth.hvp(whole)[names[name]], rtol=1e-7, atol=1e-8)
    assert any("finite differences" in n for n in oracle.notes) == (engine == "auto")
    assert fingerprint(model) == before


@pytest.mark.parametrize("engine", ["graph", "recompute"])
def test_reentrant_checkpoints_have_no_second_derivative(engine):
    model, data = reentrant()
    with pytest.raises(errors.EngineError, match="finite-difference"):
        geodiag.sharpness(model, criterion=nn.MSELoss(), data=data, engine=engine)


def test_hooks_of_parameters_that_are_not_measured_do_not_run():
    model, data = reentrant()
    ran = []
    model.head.weight.register_post_accumulate_grad_hook(ran.append)
    ask = {"criterion": nn.MSELoss(), "data": data}
    with pytest.raises(errors.EngineError, match="hooks"):
        geodiag.sharpness(model, where="block", **ask)
    geodiag.sharpness(model, max_hvps=4, **ask)
    assert ran == []
