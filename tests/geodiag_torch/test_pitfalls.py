"""What breaks Hessian tools in practice: dropped curvature, changed models, moved state.

Truth is a difference of gradients along a unit direction, of fourth order with h = 2e-3 in float64:
truncation about h⁴ = 2e-11, rounding ε/h = 1e-13, relative to gradients of order one.
"""

from __future__ import annotations

import copy
import gc
import pickle
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import geodiag
import geodiag_torch
from geodiag import errors
from tests.geodiag_torch.models import gradient_difference, mlp, random_like

pytestmark = pytest.mark.usefixtures("old_things_frozen")


def relative_error(oracle):
    d = random_like(oracle, 0)
    length = float(torch.sqrt(sum((x**2).sum() for x in d.values())))
    d = {k: x / length for k, x in d.items()}
    expected = gradient_difference(oracle.gradient_at, oracle.point(), d, 2e-3)
    got = oracle.hvp(d)
    error = sum(((got[k] - expected[k]) ** 2).sum() for k in got)
    return float(torch.sqrt(error / sum((x**2).sum() for x in expected.values())))


def test_weight_norm_whose_double_backward_is_wrong_uses_differences():
    torch.manual_seed(0)
    _, data = mlp()
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)
    ).double()
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
    assert relative_error(oracle) < 1e-7
    assert any("weight_norm" in note for note in oracle.notes)


def test_tensors_that_hooks_keep_are_given_back():
    torch.manual_seed(0)
    _, (x, y) = mlp()
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    prune.l1_unstructured(model[0], "weight", 0.5)
    model(x)
    kept = model[0].weight
    problem = geodiag.problem(model, criterion=nn.MSELoss(), data=(x, y))
    here = problem.at()
    here.loss_at({k: v + 1 for k, v in here.point().items()})
    here.hvp(random_like(here, 0))
    assert model[0].weight is kept


def test_a_loss_that_changes_the_mode_does_not_keep_it_changed():
    model, (x, y) = mlp()
    model.eval()

    def loss_fn(m, batch):
        m.train()
        return ((m(batch[0]) - batch[1]) ** 2).mean()

    geodiag.sharpness(model, loss_fn=loss_fn, data=(x, y), max_hvps=4)
    assert not model.training


def test_a_criterion_with_a_buffer_is_not_moved():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, a, b):
            self.seen += 1
            return ((a - b) ** 2).mean() * (1 + 0 * self.seen)

    model, data = mlp()
    criterion = Running()
    geodiag.sharpness(model, criterion=criterion, data=[data, data], max_hvps=6)
    assert float(criterion.seen) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "mask", m.mask * 0.5),
        lambda m: m.mask.mul_(0.5),
        lambda m: m.eval(),
        lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}, assign=True),
        lambda m: setattr(m.inner, "weight", nn.Parameter(m.inner.weight.detach() + 1)),
        lambda m: setattr(m.inner.weight, "data", m.inner.weight.data + 1),
    ],
)
def test_every_change_makes_an_oracle_stale(change):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 3)
            self.register_buffer("mask", torch.ones(3))

        def forward(self, x):
            return self.inner(x) * self.mask

    _, data = mlp()
    model = Masked().double()
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
    d = random_like(oracle, 0)
    oracle.hvp(d)
    change(model)
    with pytest.raises(errors.StaleOracle):
        oracle.hvp(d)


def test_a_rebuilt_layer_needs_a_new_problem():
    model, data = mlp()
    problem = geodiag.problem(model, criterion=nn.MSELoss(), data=data)
    model[2] = nn.Linear(4, 3, bias=False).double()
    with pytest.raises(errors.ParameterError, match="structure changed"):
        problem.at()


def test_names_survive_a_submodule_that_is_called_module():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.weight = nn.Linear(5, 3), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.module(x) * self.weight

    _, data = mlp()
    result = geodiag.sharpness(Inner().double(), criterion=nn.MSELoss(), data=data, max_hvps=4)
    assert set(result.direction) == {"module.weight", "module.bias", "weight"}


def test_what_a_caller_does_to_answers_stays_with_the_caller():
    model, data = mlp()
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
    first = {k: g.clone() for k, g in oracle.gradient().items()}
    for blocks in (oracle.gradient(), oracle.point()):
        for x in blocks.values():
            x.zero_()
    assert all(torch.equal(g, first[k]) for k, g in oracle.gradient().items())


def test_batches_of_unknown_types_need_a_weight():
    class Batch:
        def __init__(self, x, y):
            self.x, self.y, self.classes = x, y, y.new_ones(3)  # of several lengths

    model, (x, y) = mlp()
    arguments = {
        "loss_fn": lambda m, b: ((m(b.x) - b.y) ** 2).mean(),
        "data": [Batch(x[:16], y[:16]), Batch(x[16:], y[16:])],
    }
    with pytest.raises(errors.DataError, match="weight="):
        geodiag.sharpness(model, **arguments)
    oracle = geodiag.problem(model, weight=lambda b: len(b.x), **arguments).at()
    truth = nn.functional.mse_loss(model(x), y).item()
    assert float(oracle.loss()) == pytest.approx(truth, rel=1e-13)


def test_a_loader_of_unknown_length_works():
    model, (x, y) = mlp()

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from zip(x, y, strict=True)

    loader = torch.utils.data.DataLoader(Stream(), batch_size=8)
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=loader).at()
    truth = nn.functional.mse_loss(model(x), y).item()
    assert float(oracle.loss()) == pytest.approx(truth, rel=1e-13)


def test_arguments_that_could_only_be_ignored_are_refused():
    model, data = mlp()
    problem = geodiag.problem(model, criterion=nn.MSELoss(), data=data)
    for extra in ({"where": "bias"}, {"data": data}, {"engine": "recompute"}):
        with pytest.raises(errors.ArgumentError, match=next(iter(extra))):
            geodiag.sharpness(problem, **extra)
    with pytest.raises(errors.ArgumentError, match="params"):
        geodiag.sharpness(problem.at(), params=problem.at().point())


def test_graphs_do_not_pile_up():
    model, data = mlp()

    def tensors():
        gc.collect()
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    for memory in (None, 10**9):
        geodiag.sharpness(model, criterion=nn.MSELoss(), data=data, memory=memory)
        before = tensors()
        for _ in range(20):
            geodiag.sharpness(model, criterion=nn.MSELoss(), data=data, memory=memory)
        assert tensors() == before


def test_batches_keep_their_types():
    model, (x, y) = mlp()
    batch = defaultdict(list, {"x": x, "y": y})

    def loss_fn(m, b):
        assert type(b) is defaultdict
        return ((m(b["x"]) - b["y"]) ** 2).mean()

    oracle = geodiag.problem(model, loss_fn=loss_fn, data=batch).at()
    assert float(oracle.loss()) == nn.functional.mse_loss(model(x), y).item()


def test_an_optimizer_survives_copies():
    model, (x, y) = mlp()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer = geodiag_torch.NonEuclideanGD(model.parameters(), 0.1, "linf", normalized=True)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        first = twin.param_groups[0]["params"][0]
        first.grad = torch.ones_like(first)
        before = first.detach().clone()
        twin.step()
        assert torch.equal(first.detach(), before - 0.1)
