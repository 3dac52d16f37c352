"""Sparse gradients and sparse data. Truth: the same loss of a dense lookup, by autograd."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

import geodiag
import geodiag_torch

ROWS, WIDTH = 5, 3
TOKENS = torch.tensor([[0, 1, 1], [2, 0, 4]])
MADE = {
    "embedding": lambda: nn.Embedding(ROWS, WIDTH, sparse=True),
    "padded": lambda: nn.Embedding(ROWS, WIDTH, padding_idx=1, sparse=True),
    "bag": lambda: nn.EmbeddingBag(ROWS, WIDTH, mode="sum", sparse=True),
}


class Tokens(nn.Module):
    """tanh of embedded tokens, and a linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = MADE[kind](), nn.Linear(WIDTH, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        return self.head(torch.tanh(x if x.ndim == 2 else x.sum(1)))


def true_hessian(model: Tokens, y: torch.Tensor) -> torch.Tensor:
    """Of the table, then the head, as a function of one vector."""
    whole = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    fixed = model.table.weight.detach().double()
    padding = model.table.padding_idx

    def loss(w):
        table, weight, bias = w.split((ROWS * WIDTH, WIDTH, 1))
        rows = table.reshape(ROWS, WIDTH)
        rows = [fixed[i] if i == padding else rows[i] for i in range(ROWS)]
        x = torch.stack([sum(rows[int(t)] for t in line) for line in TOKENS])
        return ((torch.tanh(x) @ weight + bias - y.double().flatten()) ** 2).mean()

    return torch.autograd.functional.hessian(loss, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        *product(("embedding", "padded"), ("auto", "graph", "recompute", "finite-difference")),
        ("bag", "auto"),  # torch has no double backward of it
        ("bag", "finite-difference"),
    ],
)
def test_sparse_gradients(kind, engine, dtype):
    model, y = Tokens(kind).to(dtype), torch.tensor([[1.0], [-2.0]], dtype=dtype)
    arguments = {"criterion": nn.MSELoss(), "data": (TOKENS, y), "engine": engine}
    result = geodiag.sharpness(model, "l2", **arguments)
    H = true_hessian(model, y)
    d = torch.cat([x.double().flatten() for x in result.direction.values()])
    close = 1e-6 if dtype is torch.float64 else 1e-3
    assert float(d @ H @ d) == pytest.approx(result.value, rel=close)
    assert result.value == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=close)
    assert geodiag.sharpness(model, "linf", certificate=True, **arguments).upper > 0
    assert all(p.grad is None for p in model.parameters())


def test_a_bag_is_refused_by_name_where_it_has_no_second_derivative():
    model, y = Tokens("bag"), torch.ones(2, 1)
    with pytest.raises(geodiag.errors.EngineError, match="finite-difference"):
        geodiag.sharpness(model, criterion=nn.MSELoss(), data=(TOKENS, y), engine="graph")


def test_training_with_sparse_gradients_is_watched():
    model, y = Tokens("embedding").double(), torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = geodiag_torch.attach(
        optimizer, model, criterion=nn.MSELoss(), data=(TOKENS, y), every=1
    )
    for _ in range(3):
        H = true_hessian(model, y)
        optimizer.zero_grad()
        nn.MSELoss()(model(TOKENS), y).backward()
        optimizer.step()
        top = float(torch.linalg.eigvalsh(H)[-1])
    monitor.detach()
    assert model.table.weight.grad.is_sparse
    assert monitor.records[-1].sharpness == pytest.approx(top, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("memory", [None, 1e9, 0])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_data(layout, memory):
    torch.manual_seed(0)
    dense = torch.randn(6, 4).double() * (torch.rand(6, 4) < 0.5)
    y = torch.randn(6, 2).double()

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.randn(4, 2).double())

        def forward(self, x):
            return torch.tanh(x @ self.W)

    model = Product()
    arguments = {"criterion": nn.MSELoss()}
    expected = geodiag.sharpness(model, data=(dense, y), **arguments)
    x = dense.to_sparse(layout=layout)
    found = geodiag.sharpness(model, data=(x, y), memory=memory, **arguments)
    assert found.value == pytest.approx(expected.value, rel=1e-6)
