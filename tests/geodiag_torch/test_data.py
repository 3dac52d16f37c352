"""Data and losses in the forms that people have them, against the dense Hessian of a regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
from geodiag import errors
from tests.geodiag_torch.models import regression

mse = nn.functional.mse_loss
ENGINES = ["auto", "graph", "recompute", "finite-difference"]


def top(hessian):
    return float(np.linalg.eigvalsh(hessian)[-1])


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_of_one_entry_is_a_scalar(shape, engine):
    """As backward() takes it."""
    model, data, h = regression()

    def loss(model, batch):
        return mse(model(batch[0]), batch[1]).reshape(shape)

    found = geodiag.sharpness(model, loss_fn=loss, data=data, engine=engine)
    assert found.value == pytest.approx(top(h), rel=1e-6)
    assert found.loss == pytest.approx(float(mse(model(data[0]), data[1]).detach()), rel=1e-12)
    model.weight.grad = None
    loss(model, data).backward()
    gradient = geodiag.problem(model, loss_fn=loss, data=data).at().gradient()
    torch.testing.assert_close(gradient["weight"], model.weight.grad)


def test_several_losses_are_still_refused():
    model, data, _ = regression()
    for loss in (lambda m, b: mse(m(b[0]), b[1]).repeat(2), lambda m, b: m(b[0]).sum(0)[:0]):
        with pytest.raises(errors.LossError, match="scalar"):
            geodiag.sharpness(model, loss_fn=loss, data=data)
