"""Engines: what they may keep, what they do with a stack of directions, and whom they trust.

Truth is a fourth-order difference of gradients with step 2e-3 along a unit direction (error about
h⁴ = 2e-11 in float64), or another engine that takes a different path.
"""

from __future__ import annotations

import gc
from itertools import pairwise

import pytest
import torch
from torch import nn

import geodiag
from geodiag import errors
from geodiag.blocks import stack, unstack
from geodiag_torch.derivatives import crosscheck
from tests.geodiag_torch.models import Calls, mlp, random_like
from tests.geodiag_torch.test_custom_functions import Cubes, Hiding, Honest
from tests.geodiag_torch.test_pitfalls import relative_error

# The relative step of the check's difference is √ε, and its error h² or ε/h: what falls back to
# finite differences is then measured with the step ε^{1/3}, to ε^{2/3} = 4e-11 and 2e-5.
DIFFERENCE = {torch.float64: 1e-7, torch.float32: 1e-3}


class Frozen(nn.Module):
    """tanh whose slope is a constant to autograd: right loss and gradient, no curvature of its own.

    No node of the graph tells: it is made of products and detached tensors.
    """

    def forward(self, x):
        y = torch.tanh(x)
        slope = (1 - y**2).detach()
        return slope * x + (y - slope * x).detach()


def net(activation, dtype=torch.float64, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), activation, nn.Linear(8, classes)).to(dtype)


class Counting(nn.MSELoss):
    """Counts its calls: the forward passes. A count of its own would be given back."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, a, b):
        self.calls.add()
        return super().forward(a, b)


@pytest.fixture
def counting(monkeypatch):
    # Threads that earlier tests have left cost a pass, by which draws of random numbers are found.
    monkeypatch.setattr("geodiag_torch.derivatives.evaluation.others", frozenset)
    return Counting(Calls())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_detached_slope_is_found_out(dtype):
    _, data = mlp(dtype)
    arguments = {"criterion": nn.MSELoss(), "data": data}
    model = net(Frozen(), dtype)
    for _ in range(2):  # also the second time
        oracle = geodiag.problem(model, **arguments).at()
        d = random_like(oracle, 0)
        product = oracle.hvp(d)
        truth = geodiag.problem(net(nn.Tanh(), dtype), engine="graph", **arguments).at().hvp(d)
        for name, x in truth.items():
            assert (product[name] - x).abs().max() <= DIFFERENCE[dtype] * x.abs().max(), name
        assert any("relative difference" in note for note in oracle.notes)
    for engine in ("graph", "recompute"):
        oracle = geodiag.problem(model, engine=engine, **arguments).at()
        for ask, ds in ((oracle.hvp, d), (oracle.hvp, d), (oracle.hvps, stack([d, d]))):
            with pytest.raises(errors.EngineError, match="disagree with finite differences"):
                ask(ds)


def scaled(model, factor):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


class Centred(nn.Module):
    """All of the parameters are zero, and so are the gradients of most."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        scaled(self, 0.0)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


HONEST = {
    "smooth": lambda t: net(nn.GELU(), t),
    "kinks": lambda t: nn.Sequential(
        nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    ).to(t),
    "batchnorm": lambda t: net(nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()), t),
    "dropout": lambda t: net(nn.Sequential(nn.Dropout(0.5), nn.Tanh()), t),
    "linear": lambda t: nn.Linear(5, 3).to(t),
    "all zero": lambda t: Centred().to(t),
    "tiny": lambda t: scaled(net(nn.Tanh(), t), 1e-6),
    "large": lambda t: scaled(net(nn.Tanh(), t), 1e3),
    "rescaled": lambda t: net(nn.Sequential(nn.LayerNorm(8), nn.Tanh()), t),
}
LOSSES = {"square": nn.MSELoss(), "l1": nn.L1Loss()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", HONEST)
def test_no_false_alarms(kind, loss, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator, dtype=dtype)
    y = torch.randn(300, 3, generator=generator, dtype=dtype)
    for seed in range(3):
        torch.manual_seed(seed)
        model = HONEST[kind](dtype)
        oracle = geodiag.problem(model, criterion=LOSSES[loss], data=(x, y)).at()
        oracle.hvp(random_like(oracle, seed))
        assert oracle.notes == ()


def test_nan_is_left_to_those_who_report_it():
    model, (x, y) = mlp()
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=(x * torch.nan, y)).at()
    assert oracle.hvp(random_like(oracle, 0))["0.weight"].isnan().all()
    assert oracle.notes == ()


def test_a_check_is_made_once_per_model_and_costs_two_gradients(counting):
    model, data = mlp()
    forwards = []
    for _ in range(3):
        before = counting.calls.n
        oracle = geodiag.problem(model, criterion=counting, data=data).at()
        for seed in range(2):
            oracle.hvp(random_like(oracle, seed))
        forwards.append(counting.calls.n - before)
    assert forwards == [4, 2, 2]  # the graph, the loss with parameters, and two gradients


def test_a_model_changed_in_place_is_checked_again():
    _, data = mlp()
    model = net(nn.Tanh())
    honest = Cubes(Honest).double()
    for m in (model, honest):
        oracle = geodiag.problem(m, criterion=nn.MSELoss(), data=data).at()
        oracle.hvp(random_like(oracle, 0))
        assert oracle.notes == ()
    problem = geodiag.problem(honest, criterion=nn.MSELoss(), data=data)
    model[1] = Frozen()
    honest.function = Hiding
    for at in (geodiag.problem(model, criterion=nn.MSELoss(), data=data).at(), problem.at()):
        assert relative_error(at) < 1e-7
        assert any("relative difference" in note for note in at.notes)


def test_what_is_remembered_does_not_keep_models_alive():
    gc.collect()
    before = len(crosscheck._passed)
    model, data = mlp()
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
    oracle.hvp(random_like(oracle, 0))
    assert len(crosscheck._passed) == before + 1
    del model, oracle
    gc.collect()
    assert len(crosscheck._passed) == before


def batches(data, *cuts):
    x, y = data
    edges = [0, *cuts, len(x)]
    return [(x[a:b], y[a:b]) for a, b in pairwise(edges)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", [{"memory": 10**9}, {"engine": "graph"}])
def test_the_graphs_of_several_batches_are_kept(options, reduction, counting):
    model, data = mlp()
    arguments = {"data": batches(data, 8, 15), "reduction": reduction}
    counting.reduction = reduction
    truth = geodiag.problem(
        model, criterion=nn.MSELoss(reduction=reduction), engine="recompute", **arguments
    ).at()
    oracle = geodiag.problem(model, criterion=counting, **arguments, **options).at()
    d = random_like(oracle, 0)
    oracle.hvp(d)
    before = counting.calls.n
    product, expected = oracle.hvp(d), truth.hvp(d)
    assert counting.calls.n == before
    for name, x in expected.items():
        torch.testing.assert_close(product[name], x, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(oracle.gradient()[name], truth.gradient()[name])
    assert float(oracle.loss()) == pytest.approx(float(truth.loss()), rel=1e-14)
    assert oracle.notes == ()


def test_several_batches_above_the_memory_are_recomputed(counting):
    model, data = mlp()

    def at(data, memory):
        return geodiag.problem(model, criterion=counting, data=data, memory=memory).at()

    three, one = (at(d, 10**9) for d in (batches(data, 8, 16), batches(data, 8)[0]))
    three.gradient(), one.gradient()
    held = three._graph.bytes
    assert held > 1.5 * one._graph.bytes  # more than one batch, whose parameters count once
    for memory, kept in ((held, True), (held - 1, False), (0, False), (None, False)):
        oracle = at(batches(data, 8, 16), memory)
        d = random_like(oracle, 0)
        product = oracle.hvp(d)
        before = counting.calls.n
        oracle.hvp(d)
        assert counting.calls.n == before + (0 if kept else 3)
        assert any("memory=" in note for note in oracle.notes) == (not kept and memory is not None)
        for name, x in three.hvp(d).items():
            torch.testing.assert_close(product[name], x, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("engine", ["graph", "recompute", "finite-difference"])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_a_stack_of_products_is_the_products(k, engine, several, dtype):
    model = net(nn.Sequential(nn.LayerNorm(8), nn.GELU()), dtype)
    _, data = mlp(dtype)
    arguments = {"data": batches(data, 8, 15) if several else data, "engine": engine}
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), **arguments).at()
    ds = [random_like(oracle, seed) for seed in range(k)]
    found = unstack(oracle.hvps(stack(ds)))
    assert len(found) == k
    # Other orders of summation: a few dozen roundings of the largest entry.
    close = 0.0 if engine == "finite-difference" else 50 * torch.finfo(dtype).eps
    for d, product in zip(ds, found, strict=True):
        for name, x in oracle.hvp(d).items():
            assert (product[name] - x).abs().max() <= close * x.abs().max(), name


@pytest.mark.parametrize("engine", ["graph", "recompute"])
def test_a_stack_of_products_is_zero_where_a_parameter_is_not_used(engine):
    model, data = mlp()
    model.unused = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    arguments = {"criterion": nn.MSELoss(), "data": data, "engine": engine}
    oracle = geodiag.problem(model, **arguments).at()
    found = oracle.hvps(stack([random_like(oracle, seed) for seed in range(4)]))
    assert found["unused"].shape == (4, 2, 3)
    assert not found["unused"].any()
    for norm in ("linf", "l1", "spectral"):
        result = geodiag.sharpness(model, norm, certificate=True, **arguments)
        assert result.upper >= result.value


def test_a_stack_shares_a_recomputed_graph(counting):
    model, data = mlp()
    oracle = geodiag.problem(model, criterion=counting, data=data, engine="recompute").at()
    ds = stack([random_like(oracle, seed) for seed in range(5)])
    oracle.hvps(ds)
    before = counting.calls.n
    oracle.hvps(ds)
    assert counting.calls.n == before + 1


class Slope(torch.autograd.Function):
    """2x·g, whose derivatives refuse, or spoil, what is vectorised."""

    mood, calls = "refuse", 0

    @staticmethod
    def forward(ctx, x, grad):
        ctx.save_for_backward(x, grad)
        return 2 * x * grad

    @staticmethod
    def backward(ctx, outer):
        x, grad = ctx.saved_tensors
        Slope.calls += 1
        try:
            outer.sum().item()
        except RuntimeError:
            if Slope.mood == "refuse":
                raise
            outer = 3 * outer
        return 2 * grad * outer, 2 * x * outer


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return Slope.apply(x, grad)


@pytest.mark.parametrize("mood", ["refuse", "spoil"])
def test_what_cannot_be_vectorised_goes_one_by_one(mood, monkeypatch):
    monkeypatch.setattr(Slope, "mood", mood)
    _, data = mlp()
    oracle = geodiag.problem(Cubes(Square).double(), criterion=nn.MSELoss(), data=data).at()
    ds = [random_like(oracle, seed) for seed in range(6)]
    for _ in range(2):
        for d, row in zip(ds, unstack(oracle.hvps(stack(ds))), strict=True):
            for name, x in oracle.hvp(d).items():
                assert torch.equal(row[name], x)
    before = Slope.calls
    oracle.hvps(stack(ds))
    assert Slope.calls - before == 6  # the one pass is not tried again


def test_small_networks_take_one_pass_proven_once(monkeypatch):
    passes = []
    grad = torch.autograd.grad

    def watched(*args, is_grads_batched=False, **options):
        passes.append(is_grads_batched)
        return grad(*args, is_grads_batched=is_grads_batched, **options)

    model, data = mlp()
    for proof in ([False], []):  # the second oracle needs none, nor a check of its products
        oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
        ds = [random_like(oracle, seed) for seed in range(6)]
        oracle.hvp(ds[0])
        monkeypatch.setattr(torch.autograd, "grad", watched)
        del passes[:]
        oracle.hvps(stack(ds))
        assert passes == [True, *proof]
        del passes[:]
        oracle.hvps(stack(ds[:3]))  # too few to pay
        assert passes == [False] * 3
        monkeypatch.setattr(torch.autograd, "grad", grad)
