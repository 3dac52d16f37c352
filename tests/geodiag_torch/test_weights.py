"""Ragged batches weigh what the loss averages over: as much as in one batch of all.

The truth is the loss, and its dense Hessian, over all examples in one batch.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

import geodiag

f = nn.functional
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)


def lines(x):
    """(N, T, C) as (N, C, T), as cross-entropy takes it."""
    return x.transpose(1, 2)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return lines(x @ self.w.T)


def sequences(ignored, seed=0):
    """Batches (x, y) of two lengths, with padding; and all of them in one."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((12, 6, 3)), rng.integers(0, 4, (12, 6))
    for i in range(12):
        y[i, rng.integers(1, 7) :] = ignored
    y[:5, 4:] = ignored  # so the first five may be cut
    x, y = torch.tensor(x), torch.tensor(y)
    return [(x[:5, :4], y[:5, :4]), (x[5:9], y[5:9]), (x[9:], y[9:])], (x, y)


CRITERIA = {
    "module": (nn.CrossEntropyLoss(), -100),
    "index": (nn.CrossEntropyLoss(ignore_index=0), 0),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHTS), -100),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), -100),
    "smoothed, with class weights": (
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1, ignore_index=1),
        1,
    ),
    "function": (f.cross_entropy, -100),
    "partial": (functools.partial(f.cross_entropy, ignore_index=2, weight=WEIGHTS), 2),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_targets_that_are_left_out(name):
    criterion, ignored = CRITERIA[name]
    batches, whole = sequences(ignored)
    model = Tagger()
    found = geodiag.sharpness(model, criterion=criterion, data=batches, rtol=1e-8)
    expected = torch.autograd.functional.hessian(
        lambda w: criterion(lines(whole[0] @ w.T), whole[1]), model.w.detach()
    )
    assert found.loss == pytest.approx(float(criterion(model(whole[0]), whole[1]).detach()))
    top = np.linalg.eigvalsh(expected.reshape(12, 12).numpy())[-1]
    assert found.value == pytest.approx(top, rel=1e-7)
    assert not any("weighted by their length" in note for note in found.notes)


def test_negative_log_likelihood():
    batches, whole = sequences(-100)
    criterion, model = nn.NLLLoss(weight=WEIGHTS), Tagger()
    logs = nn.Sequential(model, nn.LogSoftmax(1))
    found = geodiag.problem(logs, criterion=criterion, data=batches).at().loss()
    torch.testing.assert_close(found, criterion(logs(whole[0]), whole[1]).detach())


def test_probabilities_as_targets_count_their_examples():
    model, generator = Tagger(), torch.Generator().manual_seed(1)
    x = torch.randn(9, 5, 3, dtype=torch.float64, generator=generator)
    y = torch.rand(9, 4, 5, dtype=torch.float64, generator=generator)
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    found = geodiag.problem(model, criterion=nn.CrossEntropyLoss(), data=batches).at().loss()
    torch.testing.assert_close(found, f.cross_entropy(model(x), y).detach())


@pytest.mark.parametrize("criterion", [nn.MSELoss(), f.l1_loss, f.mse_loss, nn.HuberLoss()])
def test_sequences_of_several_lengths_count_their_entries(criterion):
    model, generator = Tagger(), torch.Generator().manual_seed(1)
    x = [
        torch.randn(n, t, 3, dtype=torch.float64, generator=generator) for n, t in ((5, 2), (3, 7))
    ]
    y = [torch.randn(len(a), 4, a.shape[1], dtype=torch.float64, generator=generator) for a in x]
    found = geodiag.problem(model, criterion=criterion, data=[*zip(x, y, strict=True)]).at().loss()
    outputs, targets = (torch.cat([t.flatten() for t in some]) for some in (map(model, x), y))
    torch.testing.assert_close(found, criterion(outputs, targets).detach())


def test_equal_examples_weigh_their_length_exactly():
    """Bit for bit as with weight=, so that the units have no part in it."""
    model, generator = nn.Linear(3, 7), torch.Generator().manual_seed(1)
    x, y = torch.randn(11, 3, generator=generator), torch.randn(11, 7, generator=generator)
    data = [(x[:4], y[:4]), (x[4:], y[4:])]
    own = geodiag.sharpness(model, criterion=f.mse_loss, data=data)
    given = geodiag.sharpness(
        model, criterion=f.mse_loss, data=data, weight=lambda batch: len(batch[0])
    )
    assert own.value == given.value
    assert own.num_hvps == given.num_hvps


def test_a_loss_that_cannot_be_looked_into_is_said():
    batches, _ = sequences(-100)

    def loss(model, batch):
        return f.cross_entropy(model(batch[0]), batch[1])

    def sizes(batch):
        return (batch[1] >= 0).sum()

    for given in ({"loss_fn": loss}, {"criterion": lambda out, y: f.cross_entropy(out, y)}):
        found = geodiag.sharpness(Tagger(), data=batches, **given)
        assert sum("targets of -100" in note for note in found.notes) == 1
        assert not geodiag.sharpness(Tagger(), data=batches[0], **given).notes
        assert not geodiag.sharpness(Tagger(), data=batches, weight=sizes, **given).notes
