"""Losses that write to the parameters that are measured.

mean (a·x w − y)² has the Hessian 2a² mean xxᵀ at any w, so S = 2a² λ_max(mean xxᵀ): what is written
to w moves the loss, and not S. With a quartic term Σ w⁴ it has 12 w² on the diagonal, at the w that
is written.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
import geodiag_torch

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3)
BOUND = 0.5


def no_grad(w):
    with torch.no_grad():
        w.clamp_(-BOUND, BOUND)


def rebound(w):
    w.data = w.data.clamp(-BOUND, BOUND)


SETTLING = {"no_grad": no_grad, "data": lambda w: w.data.clamp_(-BOUND, BOUND), "rebound": rebound}


class Row(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.w, self.write = (
            nn.Parameter(torch.tensor([0.2, -0.4, 0.9], dtype=torch.float64)),
            write,
        )

    def forward(self, x):
        self.write(self.w)
        return x @ self.w


def loss(m, batch):
    return m(batch).square().mean() + m.w.pow(4).sum()


@pytest.mark.parametrize("engine", ["auto", "graph", "recompute"])
@pytest.mark.parametrize("write", SETTLING)
def test_it_is_measured_as_the_loss_leaves_it_and_stays_as_it_was(write, engine):
    model = Row(SETTLING[write])
    before, memory = model.w.detach().clone(), model.w.data_ptr()
    result = geodiag.sharpness(model, loss_fn=loss, data=X, engine=engine)
    assert torch.equal(model.w, before)
    assert model.w.data_ptr() == memory
    hessian = 2 * (X.T @ X).numpy() / len(X) + np.diag(12 * before.clamp(-BOUND, BOUND) ** 2)
    assert float(result) == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-6)
    assert any("writes to 'w'" in note for note in result.notes)


def test_an_embedding_that_renormalises_its_rows():
    """One row in three is beyond max_norm, and becomes of that norm."""
    table = torch.tensor([[0.3, 0.1], [3.0, 4.0], [-0.2, 0.5]], dtype=torch.float64)
    model = nn.Embedding.from_pretrained(table.clone(), freeze=False, max_norm=1.0)
    quartic = lambda m, batch: m(batch).pow(4).sum()  # noqa: E731
    result = geodiag.sharpness(model, loss_fn=quartic, data=torch.arange(3))
    assert torch.equal(model.weight, table)
    assert float(result) == pytest.approx(12 * 0.8**2, rel=1e-5)


@pytest.mark.parametrize(
    "write", [lambda w: w.data.mul_(0.9), lambda w: setattr(w, "data", 0.9 * w)]
)
def test_one_that_moves_in_every_pass_is_refused_and_stays(write):
    model = Row(write)
    before = model.w.detach().clone()
    with pytest.raises(geodiag.errors.LossError, match=r"each pass changes measured .*'w'"):
        geodiag.sharpness(model, loss_fn=loss, data=X)
    assert torch.equal(model.w, before)


@pytest.mark.parametrize("write", SETTLING)
def test_training_is_the_same(write):
    def trained(watched):
        model = Row(SETTLING[write])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if watched:
            monitor = geodiag_torch.attach(optimizer, model, loss_fn=loss, data=X, every=1)
        for _ in range(3):
            optimizer.zero_grad()
            loss(model, X).backward()
            optimizer.step()
        if watched:
            assert all(r.sharpness > 0 for r in monitor.records), monitor.records
        return model.w.tolist()

    assert trained(True) == trained(False)
