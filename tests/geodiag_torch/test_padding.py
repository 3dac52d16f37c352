"""Padding rows of embeddings: the gradient skips them, and so must all products.

The truth treats the row as a constant: the embedding is a look-up in a table that is put together
of the parameter and that constant.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import geodiag
from tests.geodiag_torch.models import gradient_difference, random_like

PAD = 2


class Words(nn.Module):
    """A classifier of words, with an output layer that may share the embedding's weight."""

    def __init__(self, tied, constant, named=False):
        super().__init__()
        self.named = named
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4, padding_idx=None if constant else PAD)
        self.deep = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7, bias=False)
        if tied:
            self.out.weight = self.embed.weight
        with torch.no_grad():
            self.embed.weight.copy_(torch.randn(7, 4))
        self.row = self.embed.weight.detach()[PAD].clone() if constant else None

    def forward(self, words):
        found = self.embed(input=words) if self.named else self.embed(words)
        if self.row is not None:
            found = torch.where((words == PAD)[..., None], self.row, found)
        return self.out(torch.tanh(self.deep(found)))


def oracle_of(tied, constant, engine, named=False):
    model = Words(tied, constant, named).double()
    words = torch.arange(28) % 7
    data = (words, words.roll(3))
    return geodiag.problem(model, criterion=nn.CrossEntropyLoss(), data=data, engine=engine).at()


@pytest.mark.parametrize("engine", ["auto", "graph", "recompute", "finite-difference"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_products_hold_padding_rows_where_training_does(named, tied, engine):
    truth = oracle_of(tied, True, "graph")
    oracle = oracle_of(tied, False, engine, named)
    d = random_like(oracle, 0)
    # Differences of fourth order with h = 2e-3 along d of length 6: h⁴·6⁴ = 2e-8, relative.
    expected = gradient_difference(truth.gradient_at, truth.point(), d, 2e-3)
    found = oracle.hvp(d)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=1e-6, atol=1e-6)
    assert not any("differ" in note for note in oracle.notes)
    if not tied:
        assert not found["embed.weight"][PAD].any()
