"""Half precision and autocast: what is computed in what, and what is said about it.

The truth is the same model in float64, by differences of gradients (tests.support) or in closed
form. A relative spacing is 2⁻⁷ in bfloat16 and 2⁻¹⁰ in float16.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import geodiag
from geodiag import Status, errors
from geodiag_torch.derivatives.graph_inspection import graph_of
from tests.geodiag_torch.models import mlp, random_like, regression
from tests.geodiag_torch.test_custom_functions import Cubes, Hiding, Honest

BF16, FP16, SINGLE = (torch.finfo(t).eps for t in (torch.bfloat16, torch.float16, torch.float32))


def autocast(dtype=torch.bfloat16):
    return torch.autocast("cpu", dtype=dtype)


class Inside(nn.Module):
    """A float32 model that autocasts in its own forward pass."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with autocast():
            return self.inner(x).float()


def test_the_coarsest_dtype_of_a_loss_is_seen():
    model, (x, y) = mlp(torch.float32)
    loss = nn.functional.mse_loss
    assert graph_of(loss(model(x), y)).precision == SINGLE
    assert graph_of(loss(Inside(model)(x), y)).precision == BF16
    with autocast(torch.float16):
        assert graph_of(loss(model(x), y)).precision == FP16
    model, (x, y) = mlp(torch.float64)
    assert graph_of(loss(model(x), y)).precision == torch.finfo(torch.float64).eps
    assert graph_of(loss(model(x).float(), y.float())).precision == SINGLE


def measured(kind):
    """(model, context of the measurement, data) of one loss in several precisions."""
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(kind, torch.float32)
    model, data = mlp(dtype)
    if kind == "autocast inside":
        return Inside(model), torch.no_grad, data
    if kind.startswith("autocast"):
        return model, lambda: autocast(getattr(torch, kind.split()[1])), data
    return model, torch.no_grad, data


HALF = ["bfloat16", "float16", "autocast bfloat16", "autocast float16", "autocast inside"]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", HALF)
def test_below_32_bits_the_uncertainty_is_measured_and_noted(kind, norm):
    exact, _ = mlp(torch.float32)  # drawn in each dtype alike, up to its rounding
    model, context, batch = measured(kind)
    names = [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        for p, q in zip(exact.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    wide = geodiag.problem(
        exact.double(), criterion=nn.MSELoss(), data=tuple(t.double() for t in batch)
    ).at()
    with context():
        result = geodiag.sharpness(model, norm, criterion=nn.MSELoss(), data=batch, max_hvps=30)
    (note,) = result.notes
    assert "fewer than 32 bits" in note
    assert result.status in (Status.PRECISION, Status.BUDGET)
    # ⟨d, Hd⟩ at the very same d, at the very same parameters: within three times what is noted.
    noted = float(note.split()[-3])
    d = {q: result.direction[p].double() for p, q in zip(names, wide.names, strict=True)}
    value = sum(float((x * d[k]).sum()) for k, x in wide.hvp(d).items())
    assert result.value == pytest.approx(value, rel=3 * noted)
    assert result.direction[names[0]].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_32_bits_on_nothing_is_spent_or_noted(dtype):
    model, data = mlp(dtype)
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
    assert oracle.precision == torch.finfo(dtype).eps
    result = geodiag.sharpness(oracle, criterion=None)
    assert result.notes == ()
    assert result.status is Status.CONVERGED


def test_the_search_itself_is_not_autocast():
    """An oracle that was made outside of autocast is measured inside, to the last bit."""
    model, data, H = regression(outputs=3)
    model, data = model.float(), tuple(t.float() for t in data)
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
    with autocast():
        inside = geodiag.sharpness(oracle)
    outside = geodiag.sharpness(oracle)
    assert inside.value == outside.value
    assert inside.value == pytest.approx(float(torch.linalg.eigvalsh(torch.tensor(H))[-1]), 1e-5)


@pytest.mark.parametrize("engine", ["finite-difference", "auto"])
def test_differences_of_half_precision_are_refused(engine):
    model, data = mlp(torch.float32)
    if engine == "auto":
        model[1] = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))  # needs differences
    for context in (lambda: autocast(), lambda: autocast(torch.float16)):
        oracle_of = geodiag.problem(model, criterion=nn.MSELoss(), data=data, engine=engine)
        with context(), pytest.raises(errors.EngineError, match="at least 32 bits"):
            geodiag.sharpness(oracle_of)
    geodiag.sharpness(oracle_of, max_hvps=4)


def test_sums_over_batches_are_in_float32():
    """1 + 2⁻⁷ is a bfloat16 number, and three times it is not: a batch's weight must not round."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.fill_(1.0)
    data = [torch.full((3,), 1 + 2.0**-7, dtype=torch.bfloat16) for _ in range(64)]
    ask = {"loss_fn": lambda m, b: (m.weight**2).sum() * b[0], "data": data}
    for engine in ("graph", "recompute"):
        oracle = geodiag.problem(model, engine=engine, **ask).at()
        assert float(oracle.loss()) == pytest.approx(1 + 2.0**-7, rel=1e-6)
        product = oracle.hvp({"weight": torch.ones(1, 1)})["weight"]
        assert float(product) == pytest.approx(2 * (1 + 2.0**-7), rel=1e-6)


def test_the_other_product_sees_the_same_dropout():
    torch.manual_seed(0)
    _, data = mlp(torch.bfloat16)
    model = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 3)).bfloat16()
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data).at()
    torch.rand(3)
    d = random_like(oracle, 0)
    product, again = oracle.hvp(d), oracle.independent_hvp(d)
    size = max(float(x.abs().max()) for x in product.values())
    for name, x in product.items():  # another mask changes half of the activations
        assert 0 < float((again[name] - x).abs().max()) < 0.1 * size


def test_a_wrong_second_derivative_is_found_out_under_autocast_too():
    torch.manual_seed(0)
    _, data = mlp(torch.float32)
    for function, wrong in ((Hiding, True), (Honest, False)):
        problem = geodiag.problem(Cubes(function), criterion=nn.MSELoss(), data=data)
        with autocast():
            oracle = problem.at()
        if wrong:
            with pytest.raises(errors.EngineError, match="relative difference"):
                oracle.hvp(random_like(oracle, 0))
        else:
            oracle.hvp(random_like(oracle, 0))
            assert oracle.notes == ()


class Stubborn(nn.Module):
    """A layer in bfloat16 inside of a float32 model: it does not run without autocast."""

    def __init__(self, function):
        super().__init__()
        self.cubes, self.last = Cubes(function), nn.Linear(3, 3).bfloat16()
        self.last.requires_grad_(False)

    def forward(self, x):
        return self.last(self.cubes(x))


@pytest.mark.parametrize("function", [Honest, Hiding])
def test_a_model_that_needs_autocast_is_checked_in_a_copy_of_one_precision(function):
    torch.manual_seed(0)
    _, data = mlp(torch.float32)
    with autocast():
        oracle = geodiag.problem(Stubborn(function), criterion=nn.MSELoss(), data=data).at()
    if function is Hiding:
        with pytest.raises(errors.EngineError, match="relative difference"):
            oracle.hvp(random_like(oracle, 0))
    else:
        oracle.hvp(random_like(oracle, 0))
        assert oracle.notes == ()


@pytest.mark.parametrize("kind", ["parameters", "autocast"])
def test_gradients_that_vanish_in_float16_are_noted(kind):
    """A loss of 1e-6 has gradients of about 1e-7 per entry; the least float16 number is 6e-8."""
    model, (x, y) = mlp(torch.float16 if kind == "parameters" else torch.float32)

    def measured(factor):
        def loss_fn(m, batch):
            # In the model's own precision: a loss in float32 would scale the rest in float32 only.
            return ((m(batch[0]) - batch[1]) * factor).square().mean()

        with autocast(torch.float16) if kind == "autocast" else torch.no_grad():
            return geodiag.sharpness(model, loss_fn=loss_fn, data=(x, y), max_hvps=8)

    assert not any("vanish" in note for note in measured(1.0).notes)
    small = measured(1e-3)
    assert any("gradients vanish in float16" in note for note in small.notes)
    model, (x, y) = model.bfloat16(), (x.bfloat16(), y.bfloat16())
    if kind == "parameters":
        assert not any("vanish" in note for note in measured(1e-3).notes)
