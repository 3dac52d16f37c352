"""``stop_gradient=``: detached parts are differentiated, or an error, where that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import geodiag
from geodiag import errors
from geodiag_torch.oracle import ENGINES
from tests.geodiag_torch.test_stop_gradient import (
    STOPPED,
    F,
    X,
    arrays,
    inference_target,
    inner_gradient,
    item,
    lists,
    measured,
    mse,
    net,
    top,
)


def see_through(m):
    z = m(X)
    with torch.no_grad():
        target = m(X + 1).tanh()
    return (z * z.detach().sin()).mean() + (z * z.data).mean() + mse(z, target)


@pytest.mark.parametrize("engine", ENGINES)
def test_detached_parts_are_differentiated_where_asked_for(engine):
    def total(m):
        z = m(X)
        return (z * z.sin()).mean() + (z * z).mean() + mse(z, m(X + 1).tanh())

    found = measured(net(), see_through, engine=engine, stop_gradient="differentiate")
    assert found.value == pytest.approx(top(net(), total), rel=1e-7)
    assert found.notes == ()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("loss", [item, lists, arrays, inner_gradient, inference_target])
def test_what_leaves_torch_cannot_be_differentiated(loss):
    with pytest.raises(errors.LossError, match="cannot be undone"):
        measured(net(), loss, stop_gradient="differentiate")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", STOPPED)
def test_detached_parts_are_an_error_where_asked_for(loss, engine):
    with pytest.raises(errors.LossError, match="detached from them"):
        measured(net(), loss, engine=engine, stop_gradient="error")


@pytest.mark.parametrize("how", ["error", "differentiate"])
def test_a_loss_without_detached_parts_is_measured_in_any_case(how):
    def loss(m):
        z = F.dropout(m(X), 0.3)
        return F.cross_entropy(z, z.argmax(1)) + (z * torch.sign(z)).mean()

    found = measured(net(), loss, stop_gradient=how)
    assert found.value == pytest.approx(top(net(), loss), rel=1e-7)
    assert found.notes == ()


def test_below_32_bits_it_cannot_be_told():
    model = net(torch.bfloat16)
    with pytest.raises(errors.EngineError, match="cannot be told"):
        geodiag.sharpness(
            model, loss_fn=lambda m, _: m(X.bfloat16()).square().mean(), stop_gradient="error"
        )


def test_an_unknown_way_is_an_argument_error():
    for how in ("constants", None, 3):
        with pytest.raises(errors.ArgumentError, match="stop_gradient="):
            geodiag.problem(net(), loss_fn=lambda m, _: m(X).mean(), stop_gradient=how)
    with pytest.raises(errors.ArgumentError, match="no use for stop_gradient="):
        geodiag.problem(np.eye(2), stop_gradient="error")
