"""Architectures: Hessian-vector products against differences of first-order gradients.

First derivatives are a different code path from double backward; the difference is of fourth order
along a unit direction, h = 2e-3, so its truncation is about h⁴ = 2e-11 and its rounding ε/h = 1e-13
of gradients of order one.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import geodiag
from tests.geodiag_torch.models import gradient_difference, random_like, regression

STEP, TOLERANCE = 2e-3, 1e-8


class Tied(nn.Module):
    """The output layer shares the embedding's weight; also an unused and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.inner = nn.ModuleDict({"deep": nn.Sequential(nn.Linear(4, 4), nn.GELU())})
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, tokens):
        return self.out(self.inner["deep"](self.embed(tokens)) * self.frozen)


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5)
        )

    def forward(self, x):
        return self.net(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.2, "gelu", batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def cases():
    g = torch.Generator().manual_seed(0)
    images = torch.randn(6, 2, 6, 6, generator=g, dtype=torch.float64)
    series = torch.randn(6, 5, 3, generator=g, dtype=torch.float64)
    wide = torch.randn(6, 5, 8, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 5, (6,), generator=g)
    tokens = torch.randint(0, 7, (6,), generator=g)
    return {
        "tied": (Tied, (tokens, tokens)),
        "conv": (Conv, (images, labels)),
        "lstm": (Recurrent, (series, labels)),
        "attention": (Attention, (wide, labels)),
    }


def build(name):
    kind, data = cases()[name]
    torch.manual_seed(1)
    return kind().double(), data


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("engine", ["graph", "recompute"])
@pytest.mark.parametrize("name", ["tied", "conv", "lstm", "attention"])
def test_products_match_differences_of_gradients(name, engine, mode):
    model, data = build(name)
    getattr(model, mode)()
    oracle = geodiag.problem(model, criterion=nn.CrossEntropyLoss(), data=data, engine=engine).at()
    d = random_like(oracle, 0)
    length = float(torch.sqrt(sum((x**2).sum() for x in d.values())))
    d = {k: x / length for k, x in d.items()}
    expected = gradient_difference(oracle.gradient_at, oracle.point(), d, STEP)
    got = oracle.hvp(d)
    scale = max(float(x.abs().max()) for x in expected.values())
    for key in expected:
        assert float((got[key] - expected[key]).abs().max()) <= TOLERANCE * scale, key
    assert oracle.notes == ()


def test_tied_frozen_and_unused_parameters():
    model, data = build("tied")
    result = geodiag.sharpness(model, criterion=nn.CrossEntropyLoss(), data=data)
    assert set(result.direction) == {
        "embed.weight", "inner.deep.0.weight", "inner.deep.0.bias", "unused",
    }  # fmt: skip
    oracle = geodiag.problem(model, criterion=nn.CrossEntropyLoss(), data=data).at()
    assert not oracle.gradient()["unused"].any()
    assert not oracle.hvp(random_like(oracle, 0))["unused"].any()


def test_dropout_masks_are_frozen():
    model, data = build("attention")
    model.train()
    problem = geodiag.problem(model, criterion=nn.CrossEntropyLoss(), data=data)
    oracle = problem.at()
    assert float(oracle.loss()) == float(oracle.loss_at(oracle.point()))
    with_dropout = float(oracle.loss())
    model.eval()
    assert float(problem.at().loss()) != with_dropout  # it was at work


def test_convolution_kernels_are_matrices_of_outputs_by_the_rest():
    model, data = build("conv")
    oracle = geodiag.problem(model, criterion=nn.CrossEntropyLoss(), data=data).at()
    kernel = oracle.point()["net.0.weight"]
    norm = geodiag.norms.Spectral().bind(oracle.space.select(["net.0.weight"]))
    expected = torch.linalg.matrix_norm(kernel.reshape(3, 2 * 3 * 3), ord=2)
    assert float(norm.value({"net.0.weight": kernel})) == pytest.approx(float(expected), rel=1e-12)


class OnceOnly(torch.autograd.Function):
    """x³ with a backward pass that cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Cubic(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))

    def forward(self, x):
        return OnceOnly.apply(self.w) @ x


def test_without_double_backward_finite_differences_take_over_and_say_so():
    x = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    problem = {"loss_fn": lambda m, b: m(b), "data": x}
    # loss = Σ x_i w_i³, so H = diag(6 x w) = diag(3, −12, −12); central differences of the
    # quadratic gradient are exact up to rounding, ε/h ≈ 1e-10.
    result = geodiag.sharpness(Cubic(), **problem)
    assert result.value == pytest.approx(3.0, rel=1e-8)
    assert any("finite differences" in note for note in result.notes)
    # The square's backward feeds a gradient that itself needs one: there autograd refuses openly.
    # With v = 3w²x and s = Σ x_i w_i³ the Hessian is 2(v vᵀ + s·diag(6wx)).
    square = {"loss_fn": lambda m, b: m(b) ** 2, "data": x}
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    v, s = 3 * w**2 * x, (w**3 * x).sum()
    top = float(torch.linalg.eigvalsh(2 * (torch.outer(v, v) + s * torch.diag(6 * w * x)))[-1])
    result = geodiag.sharpness(Cubic(), rtol=1e-6, **square)
    assert result.value == pytest.approx(top, rel=1e-6)
    assert any("finite differences" in note for note in result.notes)
    with pytest.raises(geodiag.errors.EngineError, match="finite-difference"):
        geodiag.sharpness(Cubic(), engine="graph", **square)


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature():
    problem = {"loss_fn": lambda m, b: m(b).sum(), "data": torch.ones(2, 3)}
    result = geodiag.sharpness(nn.Linear(3, 2), **problem)
    assert result.value == 0.0


def test_memory_below_the_graph_recomputes_and_says_so():
    model, data, _ = regression()
    roomy = geodiag.sharpness(model, criterion=nn.MSELoss(), data=data, memory=10**9)
    tight = geodiag.sharpness(model, criterion=nn.MSELoss(), data=data, memory=10)
    assert roomy.notes == ()
    assert "memory=10" in tight.notes[0]
    assert tight.value == pytest.approx(roomy.value, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_measurement_is_in_float32_or_better(dtype):
    model, (x, y), H = regression()
    data = (x.to(dtype), y.to(dtype))
    result = geodiag.sharpness(model.to(dtype), criterion=nn.MSELoss(), data=data)
    assert result.direction["weight"].dtype == torch.float32
    # bfloat16 has 8 bits: products carry a relative error of a few times 2⁻⁸ = 0.4 %.
    top = torch.linalg.eigvalsh(torch.tensor(H))[-1]
    assert result.value == pytest.approx(float(top), rel=1e-4 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_measuring_where_gradients_are_off(context):
    model, data, H = regression()
    with context():
        result = geodiag.sharpness(model, criterion=nn.MSELoss(), data=data, rtol=1e-6)
        step = {k: 0.1 * v for k, v in result.direction.items()}
        d = geodiag.directional_smoothness(model, step, criterion=nn.MSELoss(), data=data)
    top = float(torch.linalg.eigvalsh(torch.tensor(H))[-1])
    assert result.value == pytest.approx(top, rel=1e-6)
    assert d == pytest.approx(top, rel=1e-6)  # quadratic: D along the top eigenvector is λ_max


def test_language_model_batches_are_weighted_by_counted_tokens():
    class TinyForCausalLM(nn.Module):
        config = object()

        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)

        def forward(self, input_ids, labels):
            logits = self.head(self.embed(input_ids))[:, :-1]
            out = type("Output", (), {})()
            out.loss = nn.functional.cross_entropy(logits.reshape(-1, 5), labels[:, 1:].reshape(-1))
            return out

    torch.manual_seed(0)
    model = TinyForCausalLM().double()
    ids = torch.randint(0, 5, (4, 6))
    labels = ids.clone()
    labels[0, 2:] = -100
    batch = {"input_ids": ids, "labels": labels}
    pieces = [{k: v[i : i + 2] for k, v in batch.items()} for i in (0, 2)]
    whole, split = geodiag.problem(model, data=batch).at(), geodiag.problem(model, data=pieces).at()
    assert float(split.loss()) == pytest.approx(float(whole.loss()), rel=1e-13)
