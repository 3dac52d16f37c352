"""Custom autograd functions: a wrong second derivative is found out, in any precision.

Truth is a difference of gradients, as in tests.adapters.test_torch_pitfalls.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import geodiag
from geodiag import errors
from tests.geodiag_torch.models import mlp, random_like
from tests.geodiag_torch.test_pitfalls import relative_error


class Hiding(torch.autograd.Function):
    """x³ whose backward hides that it depends on x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * grad


class Honest(Hiding):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Cubes(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)
        self.function = function

    def forward(self, x):
        return self.second(self.function.apply(self.first(x)))


@pytest.mark.parametrize("engine", ["auto", "recompute"])
def test_a_backward_that_hides_curvature_is_found_out(engine):
    torch.manual_seed(0)
    _, data = mlp()
    model = Cubes(Hiding).double()
    problem = geodiag.problem(model, criterion=nn.MSELoss(), data=data, engine=engine)
    if engine == "recompute":
        with pytest.raises(errors.EngineError, match="disagree with finite differences"):
            problem.at().hvp(random_like(problem.at(), 0))
        return
    for _ in range(2):  # and again, at the next measurement of the same problem
        oracle = problem.at()
        # Central differences of second order with h = 6e-6·(1 + ‖w‖): error h² = 1e-9 or so.
        assert relative_error(oracle) < 1e-7
        assert any("custom autograd function" in note for note in oracle.notes)


def test_an_honest_custom_function_keeps_its_engine():
    torch.manual_seed(0)
    _, data = mlp()
    oracle = geodiag.problem(Cubes(Honest).double(), criterion=nn.MSELoss(), data=data).at()
    assert relative_error(oracle) < 1e-8
    assert oracle.notes == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_custom_functions_below_32_bits_are_checked_in_32(dtype):
    torch.manual_seed(0)
    _, data = mlp(dtype)
    honest, hiding = Cubes(Honest).to(dtype), Cubes(Hiding).to(dtype)
    before = [p.clone() for p in honest.parameters()]
    for _ in range(2):
        oracle = geodiag.problem(honest, criterion=nn.MSELoss(), data=data).at()
        oracle.hvp(random_like(oracle, 0))
        assert oracle.notes == ()
        assert all(map(torch.equal, honest.parameters(), before))
    # Also away from the model's own parameters.
    for params in (None, {k: 2 * x for k, x in oracle.point().items()}):
        wrong = geodiag.problem(hiding, criterion=nn.MSELoss(), data=[data, data]).at(params)
        with pytest.raises(errors.EngineError, match="relative difference"):
            wrong.hvp(random_like(wrong, 0))


class Sixteen(Cubes):
    """With 16 bits of its own making: nothing that is lent to it makes it finer."""

    def forward(self, x):
        return super().forward(x).bfloat16().float()


class Strict(Cubes):
    """That wants its 16 bits."""

    def forward(self, x):
        assert x.dtype == torch.bfloat16
        return super().forward(x)


class Single(Cubes):
    """Of which there is one."""

    def __deepcopy__(self, memo):
        raise ValueError("not to be copied")


def keeping():
    model = Cubes(Honest).bfloat16()
    model.kept = model.first.weight * 2  # no leaf: torch does not copy it
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sixteen(Honest),
        lambda: Strict(Honest).bfloat16(),
        lambda: Single(Honest).bfloat16(),
        keeping,
    ],
    ids=["makes 16 bits", "insists on them", "refuses to be copied", "cannot be copied"],
)
def test_custom_functions_that_cannot_be_checked_are_measured_and_it_is_noted(make):
    torch.manual_seed(0)
    model = make()
    _, data = mlp(next(model.parameters()).dtype)
    for _ in range(2):
        oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
        oracle.hvp(random_like(oracle, 0))
        assert oracle.notes == ("custom autograd functions are not cross-checked below 32 bits",)


def test_a_loss_that_closes_over_its_model_does_not_touch_it_while_a_copy_is_checked():
    torch.manual_seed(0)
    _, (x, y) = mlp(torch.bfloat16)
    model = nn.Sequential(nn.BatchNorm1d(5), Cubes(Honest)).bfloat16()
    before = [b.clone() for b in model.buffers()]
    problem = geodiag.problem(
        model, loss_fn=lambda _, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
        data=(x, y),
    )  # fmt: skip
    oracle = problem.at()
    oracle.hvp(random_like(oracle, 0))
    assert oracle.notes == ("custom autograd functions are not cross-checked below 32 bits",)
    assert all(map(torch.equal, model.buffers(), before))


def test_custom_functions_are_checked_in_inference_mode_too():
    torch.manual_seed(0)
    _, data = mlp(torch.bfloat16)
    model = Cubes(Hiding).bfloat16()
    with torch.inference_mode():
        oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
        with pytest.raises(errors.EngineError, match="relative difference"):
            oracle.hvp(random_like(oracle, 0))


def test_a_gradient_that_stands_still_is_no_measure():
    class Rounded(nn.Module):
        """A straight-through estimator: the gradient 2·round(w) has derivative 2 and no change."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.7, 2.2], dtype=torch.float64))

        def forward(self):
            return self.w + (self.w.round() - self.w).detach()

    oracle = geodiag.problem(Rounded(), loss_fn=lambda m, _: (m() ** 2).sum()).at()
    d = oracle.point()
    assert torch.equal(oracle.hvp(d)["w"], 2 * d["w"])
    assert oracle.notes == ()


class Hooked(nn.Sequential):
    """Whose output's gradient is cut off from the graph, on its way back."""

    def forward(self, x):
        found = super().forward(x)
        found.register_hook(lambda g: g.detach().clone())
        return found


def test_a_gradient_that_a_hook_cuts_off_is_found_out_below_32_bits():
    torch.manual_seed(0)
    model = Hooked(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).bfloat16()
    x, y = torch.randn(9, 3).bfloat16(), torch.randn(9, 2).bfloat16()
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=(x, y)).at()
    with pytest.raises(errors.EngineError, match="at least 32 bits"):
        oracle.hvp(random_like(oracle, 0))


def test_a_linear_parameter_below_32_bits_is_measured_without_a_note():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).bfloat16()
    x = torch.randn(9, 3).bfloat16()
    oracle = geodiag.problem(model, loss_fn=lambda m, x: m(x).mean(), data=x).at()
    product = oracle.hvp(random_like(oracle, 0))
    assert not product["2.bias"].any()
    assert product["0.weight"].any()
    assert oracle.notes == ()
