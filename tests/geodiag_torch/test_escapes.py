"""Losses that reach the measured parameters past the tensors that replace them are refused.

A derivative with respect to what replaces a parameter misses every other way to it. Truth, where
nothing escapes, is the dense Hessian in float64 by torch.autograd.functional.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import geodiag
import geodiag_torch
from geodiag import errors
from geodiag_torch.oracle import ENGINES

mse = nn.functional.mse_loss


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x):
        return self.net(x)


def fit(model, batch):
    return mse(model(batch[0]), batch[1])


def squares(tensors):
    return 0.5 * sum(w.square().sum() for w in tensors)


def in_a_list(model):
    model.kept = list(model.net.parameters())
    return lambda m, b: fit(m, b) + squares(m.kept)


def as_an_attribute(model):
    object.__setattr__(model, "tied", model.net[0].weight)
    return lambda m, b: fit(m, b) + squares([m.tied])


def in_a_closure(model):
    kept = list(model.parameters())
    return lambda m, b: fit(m, b) + squares(kept)


def in_the_groups_of_an_optimizer(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return lambda m, b: fit(m, b) + squares(optimizer.param_groups[0]["params"])


def in_a_partial(model):
    return partial(lambda m, b, w: fit(m, b) + squares([w]), w=model.net[0].weight)


def tied_to_another_module(model):
    other = nn.Linear(4, 5, bias=False).double()
    other.weight = model.net[0].weight
    return lambda m, b: fit(m, b) + other(b[0]).square().mean()


def as_a_view(model):
    view = model.net[0].weight.t()[:2]
    return lambda m, b: fit(m, b) + squares([view])


def in_a_functional_call(model):
    kept = dict(model.named_parameters())
    return lambda m, b: mse(functional_call(m, kept, (b[0],)), b[1])


def in_some_batches_alone(model):
    kept = model.net[0].weight
    return lambda m, b: fit(m, b) + (squares([kept]) if b[0].sum() > 100 else 0.0)


def by_the_gradient_of_kept_ones(model):
    kept = list(model.parameters())

    def loss(m, b):
        value = fit(m, b)
        found = torch.autograd.grad(value, kept, create_graph=True, allow_unused=True)
        return value + squares(g for g in found if g is not None)

    return loss


def by_identity(model):
    decay = dict.fromkeys(model.parameters(), 0.5)
    return lambda m, b: (
        fit(m, b) + sum(decay.get(p, 0.0) * p.square().sum() for p in m.parameters())
    )


def by_type(model):
    def held(m):
        return (p for layer in m.net for p in layer._parameters.values())

    return lambda m, b: fit(m, b) + squares(p for p in held(m) if isinstance(p, nn.Parameter))


def by_attributes(model):
    for p in model.parameters():
        p.decay = 0.5
    return lambda m, b: (
        fit(m, b) + sum(getattr(p, "decay", 0.0) * p.square().sum() for p in m.parameters())
    )


REACHED = [
    in_a_list,
    as_an_attribute,
    in_a_closure,
    in_the_groups_of_an_optimizer,
    in_a_partial,
    as_a_view,
    in_a_functional_call,
    in_some_batches_alone,
]
TOLD_APART = [by_the_gradient_of_kept_ones, by_identity, by_type, by_attributes]


def made(loss_of):
    torch.manual_seed(0)
    model = Model().double()
    x, y = torch.randn(16, 4).double(), torch.randn(16, 2).double()
    return model, loss_of(model), [(x, y), (x + 10, y)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss_of", REACHED)
def test_a_parameter_reached_past_its_replacement_is_named(loss_of, engine):
    model, loss, data = made(loss_of)
    problem = geodiag.problem(model, loss_fn=loss, data=data, engine=engine)
    with pytest.raises(errors.ParameterError, match=r"'net\.0\.weight'.*closure"):
        problem.at().hvp(problem.point())
    here = problem.point()
    with pytest.raises(errors.ParameterError, match=r"'net\.0\.weight'"):
        problem.at({name: 2 * w for name, w in here.items()}).loss_at(here)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_module_that_the_loss_reaches_gets_the_replacement_too(engine):
    model, loss, data = made(tied_to_another_module)
    w = model.net[0].weight
    plain = geodiag.problem(
        model,
        loss_fn=lambda m, b: fit(m, b) + (b[0] @ m.net[0].weight.T).square().mean(),
        data=data,
    ).at()
    found = geodiag.problem(model, loss_fn=loss, data=data, engine=engine).at()
    d = {name: torch.full_like(x, 0.1) for name, x in plain.point().items()}
    product, expected = found.hvp(d), plain.hvp(d)
    for name, x in expected.items():
        torch.testing.assert_close(product[name], x, rtol=1e-6, atol=1e-6)
    assert model.net[0].weight is w


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss_of", TOLD_APART)
def test_a_loss_that_tells_parameters_from_their_replacements_is_refused(loss_of, engine):
    model, loss, data = made(loss_of)
    for params in (None, {name: 2 * p.detach() for name, p in model.named_parameters()}):
        problem = geodiag.problem(model, loss_fn=loss, data=data, engine=engine)
        with pytest.raises(errors.ParameterError, match="the loss is another"):
            problem.at(params).hvp(problem.point())


def test_a_reentrant_checkpoint_that_reaches_one_leaves_no_gradient():
    def loss_of(model):
        kept = model.net[0].weight

        def penalised(x):
            return x + squares([kept])

        def loss(m, b):
            return checkpoint(penalised, m(b[0]), use_reentrant=True).square().mean()

        return loss

    model, loss, data = made(loss_of)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(errors.ParameterError, match=r"'net\.0\.weight'"):
        geodiag.sharpness(model, loss_fn=loss, data=data[0])
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_an_attached_monitor_says_so_at_once():
    model, loss, data = made(in_a_list)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(errors.ParameterError, match="kept elsewhere"):
        geodiag_torch.attach(optimizer, model, loss_fn=loss, data=data)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_not_measured_may_be_reached_in_any_way(engine):
    model, _, data = made(in_a_list)
    kept = model.net[2].weight

    def loss(m, b):
        return fit(m, b) + kept.sum() * squares(m.net[0].parameters())

    found = geodiag.sharpness(
        model, loss_fn=loss, data=data[0], where=r"^net\.0", engine=engine, rtol=1e-8
    )
    names = [name for name, _ in model.named_parameters() if name.startswith("net.0")]
    parts = [model.get_parameter(name).detach() for name in names]

    def at(flat):
        pieces = flat.split([p.numel() for p in parts])
        new = {n: v.view_as(p) for n, v, p in zip(names, pieces, parts, strict=True)}
        reg = kept.detach().sum() * squares(new.values())
        return mse(functional_call(model, new, (data[0][0],)), data[0][1]) + reg

    H = torch.autograd.functional.hessian(at, torch.cat([p.reshape(-1) for p in parts]))
    # Differences of gradients are accurate to ε^(2/3) = 4e-11, the search to 1e-8.
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-6)
