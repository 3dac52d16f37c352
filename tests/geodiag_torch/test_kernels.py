"""A model that torch itself cannot run in a precision is refused in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import geodiag
from geodiag import errors


def test_a_precision_without_kernels_is_named():
    model = nn.LSTM(3, 4)
    ask = {"loss_fn": lambda m, b: m(b)[0].square().mean(), "data": torch.randn(5, 2, 3)}
    with torch.autocast("cpu", dtype=torch.float16):
        try:
            model(ask["data"])
        except RuntimeError:
            with pytest.raises(errors.LossError, match="does not run in this precision"):
                geodiag.sharpness(model, **ask)
        else:  # another build of torch
            geodiag.sharpness(model, max_hvps=4, **ask)


def test_other_errors_of_a_model_stay_its_own():
    def loss_fn(model, batch):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        geodiag.sharpness(nn.Linear(2, 2), loss_fn=loss_fn, data=torch.ones(2))
