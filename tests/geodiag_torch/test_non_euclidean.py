"""NonEuclideanGD against the update written out in NumPy, and the descent identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
from geodiag import errors
from geodiag.norms import L2, ByParameter, Linf, Preconditioned, Spectral, Stacked
from geodiag_torch import NonEuclideanGD
from tests.geodiag_torch.models import mlp
from tests.optimizers.formulas import FORMULAS, MUON

LR = 0.05


RULES = {**FORMULAS, "muon": MUON}


def linear(shape=(5, 3)):
    torch.manual_seed(0)
    model = nn.Linear(shape[1], shape[0]).double()
    x = torch.randn(8, shape[1], dtype=torch.float64)
    y = torch.randn(8, shape[0], dtype=torch.float64)
    nn.functional.mse_loss(model(x), y).backward()
    return model


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("norm", RULES)
def test_one_step_is_the_definition(norm, normalized):
    model = linear()
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    g = {n: p.grad.numpy() for n, p in model.named_parameters()}
    lmo, dual = RULES[norm]
    factor = LR * (1.0 if normalized else dual(g))
    NonEuclideanGD(model.named_parameters(), LR, norm, normalized=normalized).step()
    for n, direction in lmo(g).items():
        # A few float64 operations, and an SVD accurate to a few ε of entries of order one.
        after = before[n] - factor * direction
        np.testing.assert_allclose(model.get_parameter(n).detach().numpy(), after, atol=1e-14)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1", "spectral", "block", "nuclear", "rms"])
def test_the_loss_changes_by_the_identity(norm):
    # ΔL = −η(1 − ηD/2)‖g‖*², for each unnormalized step; float64 rounding of L is 1e-16 of order 1.
    model, (x, y) = mlp()
    problem = geodiag.problem(model, criterion=nn.MSELoss(), data=(x, y))
    optimizer = NonEuclideanGD(model.named_parameters(), 0.01, norm)
    for _ in range(3):
        here = problem.at()
        w, before = here.point(), float(here.loss())
        dual = float(problem_norm(norm, here).dual(here.gradient()))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        after = nn.functional.mse_loss(model(x), y).item()
        step = {n: p.detach() - w[n] for n, p in model.named_parameters()}
        d = geodiag.directional_smoothness(problem, step, norm, params=w)
        expected = -0.01 * (1 - 0.01 * d / 2) * dual**2
        assert after - before == pytest.approx(expected, abs=1e-12)


def problem_norm(name, oracle):
    return geodiag.plugins.registry.norm(name).bind(oracle.space)


def test_dual_norm_is_joint_over_groups_and_lr_is_per_group():
    model = linear()
    w, b = (p.detach().numpy().copy() for p in (model.weight, model.bias))
    gw, gb = model.weight.grad.numpy(), model.bias.grad.numpy()
    groups = [
        {"params": [("weight", model.weight)], "lr": 0.1},
        {"params": [("bias", model.bias)]},
    ]
    NonEuclideanGD(groups, 0.01, "linf").step()
    dual = np.abs(gw).sum() + np.abs(gb).sum()
    new_w, new_b = (p.detach().numpy() for p in (model.weight, model.bias))
    np.testing.assert_allclose(new_w, w - 0.1 * dual * np.sign(gw), atol=1e-14)
    np.testing.assert_allclose(new_b, b - 0.01 * dual * np.sign(gb), atol=1e-14)


def test_schedulers_closures_and_state():
    model = linear()
    optimizer = NonEuclideanGD(model.parameters(), 0.1, "linf", normalized=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    before = model.weight.detach().clone()
    loss = optimizer.step(lambda: model.weight.grad.sum())
    assert float(loss) == pytest.approx(float(model.weight.grad.sum()))
    scheduler.step()
    torch.testing.assert_close(
        model.weight.detach(), before - 0.1 * torch.sign(model.weight.grad), rtol=0, atol=1e-15
    )
    assert optimizer.param_groups[0]["lr"] == 0.05
    other = NonEuclideanGD(model.parameters(), 0.1, "linf", normalized=True)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.05


def test_parameters_without_a_gradient_stay():
    model = linear()
    model.bias.grad = None
    bias = model.bias.detach().clone()
    NonEuclideanGD(model.named_parameters(), 0.1, "spectral").step()
    assert torch.equal(model.bias.detach(), bias)


def test_half_precision_parameters_move():
    model = linear().to(torch.bfloat16)
    model.weight.grad = torch.ones_like(model.weight)
    before = model.weight.detach().clone()
    NonEuclideanGD([model.weight], 0.25, "linf", normalized=True).step()
    assert torch.equal(model.weight.detach(), before - 0.25)


def test_added_groups_are_measured_too():
    model = linear()
    optimizer = NonEuclideanGD([("weight", model.weight)], 0.1, "linf")
    optimizer.add_param_group({"params": [("bias", model.bias)]})
    bias = model.bias.detach().clone()
    total = model.weight.grad.abs().sum() + model.bias.grad.abs().sum()
    optimizer.step()
    expected = bias - 0.1 * total * torch.sign(model.bias.grad)
    torch.testing.assert_close(model.bias.detach(), expected, rtol=0, atol=1e-14)


def test_names_reach_pattern_norms():
    model = linear()
    norm = ByParameter({"bias": Linf(), "weight": Spectral()})
    NonEuclideanGD(model.named_parameters(), 0.1, norm).step()
    P = {"weight": np.full((5, 3), 2.0), "bias": np.ones(5)}
    NonEuclideanGD(model.named_parameters(), 0.1, Preconditioned(P)).step()
    for pattern_norm in (norm, Preconditioned(P)):
        with pytest.raises(errors.NormError, match="named_parameters"):
            NonEuclideanGD(model.parameters(), 0.1, pattern_norm)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_lr_must_be_positive(lr):
    with pytest.raises(errors.ArgumentError, match="lr"):
        NonEuclideanGD(linear().parameters(), lr, "l2")
    with pytest.raises(errors.ArgumentError, match="lr"):
        NonEuclideanGD([{"params": linear().parameters(), "lr": lr}], 0.1, "l2")


def test_other_unusable_arguments():
    model = linear()
    with pytest.raises(errors.UnknownNorm, match="spectral"):
        NonEuclideanGD(model.parameters(), 0.1, "spectrl")
    with pytest.raises(errors.ArgumentError, match="takes a Norm object"):
        NonEuclideanGD(model.parameters(), 0.1, 3)
    with pytest.raises(errors.ArgumentError, match="instance"):
        NonEuclideanGD(model.parameters(), 0.1, L2)
    with pytest.raises(errors.NormError, match="matrix"):
        NonEuclideanGD([("bias", model.bias)], 0.1, "muon")
    with pytest.raises(errors.ParameterError, match="not real"):
        NonEuclideanGD([nn.Parameter(torch.ones(2) * 1j)], 0.1)
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(errors.ParameterError, match="sparse"):
        NonEuclideanGD(embedding.parameters(), 0.1).step()


def test_zero_gradients_move_nothing_in_any_norm():
    model = linear()
    model.weight.grad.zero_()
    weight = model.weight.detach().clone()
    for norm in ("spectral", "muon", "nuclear", "linf", "l2"):
        NonEuclideanGD(model.named_parameters(), 0.1, norm, normalized=True).step()
        assert torch.equal(model.weight.detach(), weight), norm


def test_two_parameters_of_one_name_are_refused():
    one, two = linear(), linear()
    with pytest.raises(errors.ParameterError, match="prefix"):
        NonEuclideanGD([{"params": list(m.named_parameters())} for m in (one, two)], 0.1, "l2")


def test_a_refused_group_is_not_kept():
    optimizer = NonEuclideanGD(linear().parameters(), 0.1)
    with pytest.raises(errors.ArgumentError, match="lr"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": -1.0})
    with pytest.raises(errors.ParameterError, match="not real"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2) * 1j)]})
    assert len(optimizer.param_groups) == 1


def test_a_diverged_gradient_is_named():
    model = linear()
    model.weight.grad.fill_(float("nan"))
    with pytest.raises(errors.NonFiniteError, match="diverged"):
        NonEuclideanGD(model.named_parameters(), 0.1, "spectral").step()


def test_stacked_matrices_step_one_by_one():
    w = nn.Parameter(torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.manual_seed(0)))
    w.grad = torch.randn(3, 4, 2, dtype=torch.float64)
    before = w.detach().clone().numpy()
    norm = Stacked(Spectral(), {"experts": 1})
    NonEuclideanGD([("experts", w)], LR, norm, normalized=True).step()
    for i in range(3):
        u, _, vt = np.linalg.svd(w.grad[i].numpy(), full_matrices=False)
        np.testing.assert_allclose(w.detach()[i].numpy(), before[i] - LR * u @ vt, atol=1e-14)
