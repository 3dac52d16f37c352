"""Detached parts of a loss are constants: their Hessian is measured, by every engine, and noted.

Truth is the dense Hessian in float64 by torch.autograd.functional, to which detached tensors are
constants too; where a second derivative is hidden, of the same loss written without the function
that hides it; where parts are differentiated, of the loss without detach().
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import geodiag
from geodiag import errors
from geodiag_torch.oracle import ENGINES
from tests.geodiag_torch.test_custom_functions import Hiding

HELD = "what is detached in the loss is held constant"
X, Y = torch.linspace(-1, 1, 36).double().reshape(9, 4).sin(), torch.linspace(-1, 2, 27).double()
Y, ACTIONS = Y.reshape(9, 3).cos(), torch.arange(9) % 3
F = nn.functional
mse = F.mse_loss


class Net(nn.Module):
    """Features, a head and a codebook."""

    def __init__(self):
        super().__init__()
        self.f, self.h = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)
        self.code = nn.Parameter(torch.randn(4, 5))

    def forward(self, x):
        return self.h(self.f(x))


def siamese(m):
    a, b = m(X), m(X.flip(0) + 0.3)
    cos = F.cosine_similarity
    return -(cos(a, b.detach()).mean() + cos(b, a.detach()).mean()) / 2


def q_learning(m):
    q = m(X).gather(1, ACTIONS[:, None])[:, 0]
    return F.smooth_l1_loss(q, Y[:, 0] + 0.9 * m(X + 0.5).max(1).values.detach())


def no_grad_target(m):
    with torch.no_grad():
        target = m(X + 1).tanh()
    return mse(m(X), target)


def inference_target(m):
    with torch.inference_mode():
        target = m(X).tanh()
    return mse(m(X), 1.5 * target.clone())


def data(m):
    z = m(X)
    return (z * z.data**2).mean() + mse(z, Y)


def item(m):
    z = m(X).square().mean()
    return z * (1 + z.item()) + z * float(z.detach())


def lists(m):
    z = m(X)
    return (z * torch.tensor(z.tolist(), dtype=z.dtype).tanh()).mean() + mse(z, Y)


def arrays(m):
    z = m(X)
    return (z * torch.from_numpy(np.tanh(z.detach().numpy()))).mean() + mse(z, Y)


def straight_through(m):
    h = m.f(X)
    return mse(m.h(h + (torch.round(8 * h) / 8 - h).detach()), Y)


def gumbel(m):
    z = m(X)
    return (F.gumbel_softmax(z, hard=True) * Y).square().mean() + (z * z.detach()).mean()


def vector_quantised(m):
    h = m.f(X)
    q = m.code[torch.cdist(h, m.code).argmin(1)]
    commitment = 0.25 * mse(h, q.detach()) + mse(q, h.detach())
    return mse(m.h(h + (q - h).detach()), Y) + commitment


def focal(m):
    each = F.cross_entropy(m(X), ACTIONS, reduction="none")
    return (each * each.detach()).mean()


def inner_gradient(m):
    z = m(X)
    inner = z.detach().requires_grad_()
    (g,) = torch.autograd.grad((inner**3).sum(), inner)
    return mse(z, Y) + 0.1 * (z * g).mean()


def moving_average(m):
    average = torch.zeros(3, dtype=X.dtype)
    average.mul_(0.9).add_(m(X).detach().mean(0), alpha=2.0)
    return mse(m(X), Y) + (m(X) * average).square().mean()


def with_dropout(m):
    z = F.dropout(m(X), 0.5)
    return mse(z, 0.5 * z.detach() + Y)


def branches(m):
    z = m(X)
    return torch.where(z > 0, z**2, z.detach() * z).mean() + (mse(z, Y) if z.mean() > 9 else 0.0)


def checkpointed(m):
    def inside(x):
        return mse(m(x), Y) + (m(x) * m(x).detach().sin()).mean()

    return checkpoint(inside, X, use_reentrant=False)


STOPPED = [
    siamese,
    q_learning,
    no_grad_target,
    inference_target,
    data,
    item,
    lists,
    arrays,
    straight_through,
    gumbel,
    vector_quantised,
    focal,
    inner_gradient,
    moving_average,
    with_dropout,
    branches,
    checkpointed,
]


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype)


def dense(model, loss):
    """The dense Hessian of ``loss(model)``, with the randomness that a measurement meets."""
    named = dict(model.named_parameters())

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = model

        def forward(self):
            return loss(self.m)

    def at(flat):
        torch.manual_seed(1)
        pieces = flat.split([p.numel() for p in named.values()])
        new = {f"m.{n}": v.view_as(p) for (n, p), v in zip(named.items(), pieces, strict=True)}
        return functional_call(Loss(), new, ())

    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    return torch.autograd.functional.hessian(at, flat)


def top(model, loss):
    return float(torch.linalg.eigvalsh(dense(model, loss))[-1])


def measured(model, loss, **options):
    torch.manual_seed(1)
    return geodiag.sharpness(model, loss_fn=lambda m, _: loss(m), rtol=1e-8, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", STOPPED)
def test_detached_parts_are_constants(loss, engine):
    model = net()
    truth = top(model, loss)
    for _ in range(2):  # also once the model is known
        found = measured(model, loss, engine=engine)
        # Differences of gradients are accurate to about ε^(2/3) = 4e-11.
        assert found.value == pytest.approx(truth, rel=1e-7)
        assert found.notes == (HELD,)


@pytest.mark.parametrize("engine", ["auto", "finite-difference"])
def test_in_float32_too(engine):
    model, x, y = net(torch.float32), X.float(), Y.float()
    truth = top(net(), lambda m: mse(m(X), m(X + 1).detach()) + mse(m(X), Y))
    found = measured(
        model, lambda m: mse(m(x), m(x + 1).detach()) + mse(m(x), y), engine=engine, max_hvps=60
    )
    assert found.value == pytest.approx(truth, rel=1e-3)  # differences: ε^(2/3) = 2e-5, enlarged
    assert found.notes[0] == HELD


@pytest.mark.parametrize("engine", ["auto", "finite-difference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_detached_part_beside_a_large_loss(dtype, engine):
    """S of 1 + 0.02 Σ w² stop(w) is 0.04 max w. Differences that move stop(w) are symmetric too."""
    model = nn.Linear(4, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.9, 0.5, 0.7, 0.3]]))

    def loss(m):
        return 1 + 0.02 * (m.weight**2 * m.weight.detach()).sum()

    found = measured(model, loss, engine=engine, max_hvps=60)
    assert found.value == pytest.approx(0.036, rel=1e-3)
    assert HELD in found.notes


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_parameters_are_constants_of_the_loss_too(engine):
    model, whole = net(), net()

    def loss(m):
        return mse(m(X), (m(X + 1) + m.code.sum()).detach()) + 0.1 * m.code.sum() * m(X).sum()

    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    kept = np.repeat([name not in ("h.bias", "code") for name in names], sizes)
    truth = np.linalg.eigvalsh(dense(whole, loss).numpy()[np.ix_(kept, kept)])[-1]
    for p in (model.h.bias, model.code):
        p.requires_grad_(False)
    found = measured(model, loss, engine=engine)
    assert found.value == pytest.approx(truth, rel=1e-7)
    assert HELD in found.notes


def test_several_batches_are_held_one_by_one():
    model = net()
    batches = [(X, Y), (X + 0.2, 2 * Y), (X - 0.1, Y)]

    def each(m, batch):
        return mse(m(batch[0]), batch[1]) + (m(batch[0]) * m(batch[0]).detach().sin()).mean()

    truth = top(model, lambda m: sum(each(m, b) for b in batches) / 3)
    for engine in ENGINES:
        found = geodiag.sharpness(model, loss_fn=each, data=batches, rtol=1e-8, engine=engine)
        assert found.value == pytest.approx(truth, rel=1e-7)
        assert found.notes == (HELD,)


@pytest.mark.parametrize("engine", ENGINES)
def test_power_iterations_are_constants(engine):
    """Without gradients, in training mode: one step from the buffers, which stay as they are."""
    model = net()
    nn.utils.parametrizations.spectral_norm(model.f[0])
    for _ in range(60):
        model(X)  # until the truth's own steps change nothing
    found = measured(model, lambda m: mse(m(X), Y), engine=engine)
    assert found.value == pytest.approx(top(model, lambda m: mse(m(X), Y)), rel=1e-5)
    assert found.notes == (HELD,)


def cubes(m, function):
    return m.h(function(m.f(X)))


@pytest.mark.parametrize("engine", ["auto", "finite-difference"])
def test_a_hidden_second_derivative_beside_a_detached_part_is_found_out(engine):
    def loss(m, cube=Hiding.apply):
        z = cubes(m, cube)
        return mse(z, Y) + (z * z.detach().sin()).mean()

    truth = top(net(), lambda m: loss(m, lambda h: h**3))
    assert abs(top(net(), loss) / truth - 1) > 0.02
    found = measured(net(), loss, engine=engine)
    assert found.value == pytest.approx(truth, rel=1e-6)
    assert HELD in found.notes


class Rounding(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(2 * x) / 2

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_derivatives_that_a_function_declares_are_used_and_differences_are_not_symmetric():
    def loss(m):
        return mse(cubes(m, Rounding.apply), Y)

    found = measured(net(), loss)
    assert found.value == pytest.approx(top(net(), loss), rel=1e-7)
    assert any("gradient is not that of the loss" in note for note in found.notes)
    with pytest.raises(errors.EngineError, match="not symmetric, so S is not defined"):
        measured(net(), loss, engine="finite-difference")


def test_what_cannot_be_watched_is_measured_where_its_errors_are_renamed_too():
    def renaming(m):  # vmap cannot be watched
        try:
            return torch.vmap(lambda a, k: a.square().sum() * (k * 2.0))(m(X), X[:, 0].exp()).sum()
        except RuntimeError as e:
            raise ValueError("a layer failed") from e

    model = net()
    found = measured(model, renaming, engine="finite-difference")
    assert found.value == pytest.approx(top(model, renaming), rel=1e-7)  # as above
