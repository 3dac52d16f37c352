"""The torch adapter against closed forms: a linear model, whose Hessian is written down.

Autograd compared with autograd would share a channel; here the truth comes from NumPy.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
from geodiag.blocks import flatten
from tests.geodiag_torch.models import mlp, random_like, regression, second_difference

ENGINES = ("auto", "graph", "recompute", "finite-difference")
# Float64 sums of 40 terms: relative error about 40·ε < 1e-14; a central difference of an exactly
# quadratic loss has no truncation error, and rounding ε/h = 2e-16/6e-6 < 1e-10.
TOLERANCE = {"auto": 1e-13, "graph": 1e-13, "recompute": 1e-13, "finite-difference": 1e-9}


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_and_hvp_of_a_linear_model_match_the_normal_equations(engine):
    model, (x, y), H = regression()
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=(x, y), engine=engine).at()
    residual = model(x).detach().numpy() - y.numpy()
    scale = 2.0 / residual.size
    expected_weight = scale * residual.T @ x.numpy()
    np.testing.assert_allclose(oracle.gradient()["weight"].numpy(), expected_weight, rtol=1e-12)
    np.testing.assert_allclose(
        oracle.gradient()["bias"].numpy(), scale * residual.sum(0), rtol=1e-12, atol=1e-15
    )
    assert float(oracle.loss()) == pytest.approx(np.mean(residual**2), rel=1e-14)
    d = random_like(oracle, 1)
    expected = H @ flatten(d).numpy()
    got = flatten(oracle.hvp(d)).numpy()
    np.testing.assert_allclose(got, expected, atol=TOLERANCE[engine] * np.abs(expected).max())


@pytest.mark.parametrize("engine", ENGINES)
def test_l2_sharpness_is_the_top_eigenvalue(engine):
    model, data, H = regression()
    result = geodiag.sharpness(model, criterion=nn.MSELoss(), data=data, engine=engine, rtol=1e-6)
    # A residual of 1e-6 bounds the eigenvalue's relative error by 1e-6 (and its square, usually).
    assert result.value == pytest.approx(np.linalg.eigvalsh(H)[-1], rel=1e-6)
    assert result.bound is geodiag.Bound.EXACT


def test_curvature_of_an_mlp_matches_second_differences_of_the_loss():
    model, data = mlp()
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
    for seed in range(3):
        d = random_like(oracle, seed)
        got = float(sum((d[k] * v).sum() for k, v in oracle.hvp(d).items()))
        # h² truncation 1e-8 and rounding 4·2e-16·|L|/h² = 1e-7 at h = 1e-4, on values of order 10.
        expected = second_difference(oracle.loss_at, oracle.point(), d, 1e-4)
        assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_ragged_batches_count_by_their_size(engine):
    model, (x, y), H = regression()
    batches = [(x[:25], y[:25]), (x[25:37], y[25:37]), (x[37:], y[37:])]
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=batches, engine=engine).at()
    whole = geodiag.problem(model, criterion=nn.MSELoss(), data=(x, y)).at()
    assert float(oracle.loss()) == pytest.approx(float(whole.loss()), rel=1e-13)
    d = random_like(oracle, 2)
    expected = H @ flatten(d).numpy()
    got = flatten(oracle.hvp(d)).numpy()
    np.testing.assert_allclose(got, expected, atol=TOLERANCE[engine] * np.abs(expected).max())


def test_a_loss_that_sums_is_added_over_batches():
    model, (x, y), H = regression()
    batches = [(x[:25], y[:25]), (x[25:], y[25:])]
    result = geodiag.sharpness(
        model, criterion=nn.MSELoss(reduction="sum"), data=batches, reduction="sum", rtol=1e-6
    )
    assert result.value == pytest.approx(np.linalg.eigvalsh(H)[-1] * y.numel(), rel=1e-6)


def test_weight_replaces_the_batch_size():
    model, (x, y), _ = regression()
    batches = [(x[:25], y[:25]), (x[25:], y[25:])]
    oracle = geodiag.problem(
        model,
        criterion=nn.MSELoss(),
        data=batches,
        weight=lambda b: 3.0 if len(b[0]) == 25 else 1.0,
    ).at()
    first, second = (np.mean((model(a).detach().numpy() - b.numpy()) ** 2) for a, b in batches)
    assert float(oracle.loss()) == pytest.approx((3 * first + second) / 4, rel=1e-13)


def test_a_shuffling_loader_gives_the_same_batches_in_every_pass():
    model, (x, y), _ = regression()
    dataset = torch.utils.data.TensorDataset(x, y)
    generator = torch.Generator().manual_seed(3)
    for extra in ({}, {"generator": generator}):
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=16, shuffle=True, drop_last=True, **extra
        )
        before = generator.get_state().clone(), torch.random.get_rng_state().clone()
        oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=loader).at()
        d = random_like(oracle, 0)
        first, second = oracle.hvp(d), oracle.hvp(d)
        assert all(torch.equal(first[k], second[k]) for k in first)
        assert torch.equal(before[0], generator.get_state())
        assert torch.equal(before[1], torch.random.get_rng_state())


def test_data_that_change_between_passes_are_reported():
    class Changing:
        count = 0

        def __iter__(self):
            Changing.count += 1
            yield x * Changing.count, y
            yield x, y

    model, (x, y), _ = regression()
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=Changing()).at()
    oracle.gradient()
    with pytest.raises(geodiag.GeodiagError, match="changed between two passes"):
        oracle.hvp(random_like(oracle, 0))


def test_where_holds_the_others_fixed():
    model, data, H = regression()
    weight = geodiag.sharpness(model, where="weight", criterion=nn.MSELoss(), data=data, rtol=1e-6)
    assert weight.value == pytest.approx(np.linalg.eigvalsh(H[:12, :12])[-1], rel=1e-6)
    bias = geodiag.sharpness(
        model, where=lambda name, p: p.dim() == 1, criterion=nn.MSELoss(), data=data, rtol=1e-6
    )
    assert bias.value == pytest.approx(np.linalg.eigvalsh(H[12:, 12:])[-1], rel=1e-6)
    assert set(bias.direction) == {"bias"}


def test_loss_fn_gets_the_module_and_the_batch():
    model, (x, y), H = regression()

    def loss_fn(m, batch):
        assert m is model
        return ((m(batch["x"]) - batch["y"]) ** 2).mean()

    result = geodiag.sharpness(model, loss_fn=loss_fn, data={"x": x, "y": y}, rtol=1e-6)
    assert result.value == pytest.approx(np.linalg.eigvalsh(H)[-1], rel=1e-6)


def test_an_output_with_a_loss_needs_neither_criterion_nor_loss_fn():
    class WithLoss(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, inputs, labels):
            out = type("Output", (), {})()
            out.loss = ((self.inner(inputs) - labels) ** 2).mean()
            return out

    model, (x, y), H = regression()
    result = geodiag.sharpness(WithLoss(model), data={"inputs": x, "labels": y}, rtol=1e-6)
    assert result.value == pytest.approx(np.linalg.eigvalsh(H)[-1], rel=1e-6)
    assert set(result.direction) == {"inner.weight", "inner.bias"}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on import
def test_wrappers_are_looked_through():
    model, data, H = regression()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        result = geodiag.sharpness(wrapped, criterion=nn.MSELoss(), data=data, rtol=1e-6)
        assert set(result.direction) == {"weight", "bias"}
        assert result.value == pytest.approx(np.linalg.eigvalsh(H)[-1], rel=1e-6)


def test_another_point_than_the_models():
    model, (x, y) = mlp()
    problem = geodiag.problem(model, criterion=nn.MSELoss(), data=(x, y))
    here = problem.at()
    elsewhere = {k: v + 0.3 for k, v in here.point().items()}
    moved = problem.at(elsewhere)
    reference, _ = mlp()
    with torch.no_grad():
        for name, p in reference.named_parameters():
            p.copy_(elsewhere[name])
    truth = geodiag.problem(reference, criterion=nn.MSELoss(), data=(x, y)).at()
    d = random_like(here, 5)
    assert float(moved.loss()) == float(truth.loss()) == float(here.loss_at(elsewhere))
    for name, product in moved.hvp(d).items():
        assert torch.equal(product, truth.hvp(d)[name])
        assert torch.equal(here.gradient_at(elsewhere)[name], truth.gradient()[name])


def test_a_changed_model_makes_the_oracle_stale():
    model, data, _ = regression()
    problem = geodiag.problem(model, criterion=nn.MSELoss(), data=data)
    oracle = problem.at()
    own_point = problem.at(oracle.point())
    d = random_like(oracle, 0)
    before = own_point.hvp(d)
    oracle.hvp(d)
    with torch.no_grad():
        model.weight.add_(1.0)
    with pytest.raises(geodiag.errors.StaleOracle, match=r"problem\.at"):
        oracle.hvp(d)
    assert torch.equal(own_point.hvp(d)["weight"], before["weight"])  # frozen at its own copy


def test_many_measurements_of_one_problem_and_closing_it():
    model, data, H = regression()
    with geodiag.problem(model, criterion=nn.MSELoss(), data=data) as problem:
        first = geodiag.sharpness(problem, rtol=1e-6)
        again = geodiag.sharpness(problem, start=first, rtol=1e-6)
        oracle = problem.at()
        oracle.gradient()
        assert oracle._graph is not None
    assert oracle._graph is None
    assert again.value == pytest.approx(np.linalg.eigvalsh(H)[-1], rel=1e-6)


def test_the_result_tells_the_gradients_dual_norm():
    model, (x, y), _ = regression()
    residual = model(x).detach().numpy() - y.numpy()
    scale = 2.0 / residual.size
    weight, bias = scale * residual.T @ x.numpy(), scale * residual.sum(0)
    arguments = {"criterion": nn.MSELoss(), "data": (x, y)}
    duals = {
        "l2": np.sqrt((weight**2).sum() + (bias**2).sum()),
        "linf": np.abs(weight).sum() + np.abs(bias).sum(),
        "spectral": np.linalg.svd(weight, compute_uv=False).sum() + np.linalg.norm(bias),
        "l1": max(np.abs(weight).max(), np.abs(bias).max()),
    }
    for norm, expected in duals.items():
        result = geodiag.sharpness(model, norm, **arguments)
        assert result.dual_norm == pytest.approx(expected, rel=1e-12), norm


def test_a_point_stays_where_the_model_was():
    model, data = mlp()
    problem = geodiag.problem(model, criterion=nn.MSELoss(), data=data)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    points = problem.point(), problem.snapshot()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    for point in points:
        assert all(torch.equal(point[name].to(x.dtype), x) for name, x in before.items())


@pytest.mark.parametrize("engine", ["auto", "graph", "recompute"])
def test_a_parameter_in_which_the_loss_is_linear_has_no_curvature(engine):
    """Its gradient is constant, as that of a function that drops second derivatives would be."""
    model = nn.Linear(3, 1).double()
    model.slope = nn.Parameter(torch.ones(2, dtype=torch.float64))
    x, y = torch.randn(5, 3).double(), torch.randn(5, 1).double()

    def loss(model, batch):
        return ((model(x) - y) ** 2).mean() + 2 * model.slope.sum()

    result = geodiag.sharpness(model, loss_fn=loss, data=[0], engine=engine)
    ones = torch.cat([x, torch.ones(5, 1).double()], 1)
    assert result.value == pytest.approx(float(torch.linalg.eigvalsh(2 * ones.T @ ones / 5)[-1]))
    assert result.notes == ()
    assert result.direction["slope"].abs().max() < 1e-12
