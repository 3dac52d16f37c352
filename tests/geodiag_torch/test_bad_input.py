"""Unusable input to the torch adapter: one clear GeodiagError each, and the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import geodiag
import geodiag_torch
from geodiag import errors
from tests.geodiag_torch.models import fingerprint, regression


def good():
    model, data, _ = regression()
    return model, {"criterion": nn.MSELoss(), "data": data}


class WrongShapes(geodiag.Norm):
    def value(self, d):
        return sum((x * x).sum() for x in d.values()) ** 0.5

    def lmo(self, g):
        return {name: x.flatten() for name, x in g.items()}


ROWS = {
    "loss not scalar": ({"criterion": nn.MSELoss(reduction="none")}, errors.LossError, "scalar"),
    "loss a float": ({"criterion": lambda a, b: 1.0}, errors.LossError, "float"),
    "loss detached": (
        {"criterion": lambda a, b: (a.detach() ** 2).sum()}, errors.LossError, "does not depend"),
    "loss nan": (
        {"criterion": lambda a, b: (a * float("nan")).sum()}, errors.NonFiniteError, "loss"),
    "gradient nan": (
        {"criterion": lambda a, b: (a - a.detach()).abs().sqrt().sum()},
        errors.NonFiniteError, "gradient"),
    "no match": ({"where": "conv"}, errors.ParameterError, "matches no parameter"),
    "empty list": ({"data": []}, errors.DataError, "empty"),
    "empty batch": ({"data": (torch.zeros(0, 4), torch.zeros(0, 3))}, errors.DataError, "empty"),
    "one shot": ({"data": iter([1])}, errors.DataError, "one-shot"),
    "data unknown": ({"data": 3}, errors.DataError, "unknown form"),
    "criterion without target": ({"data": torch.zeros(2, 4)}, errors.DataError, "batches"),
    "no data": ({"data": None}, errors.DataError, "no data"),
    "both losses": ({"loss_fn": lambda m, b: 0.0}, errors.ArgumentError, "exclude"),
    "criterion not callable": ({"criterion": 3}, errors.ArgumentError, "callable"),
    "engine": ({"engine": "warp"}, errors.ArgumentError, "engine"),
    "memory": ({"memory": -1}, errors.ArgumentError, "memory"),
    "reduction": ({"reduction": "max"}, errors.ArgumentError, "reduction"),
    "shapes": ({"shapes": {"x": (2,)}}, errors.ArgumentError, "shapes"),
    "process group": ({"process_group": object()}, errors.ArgumentError, "process_group"),
    "a tensor for a process group": (
        {"process_group": torch.ones(2)}, errors.ArgumentError, "process_group",
    ),
    "params": ({"params": [1]}, errors.ArgumentError, "point"),
    "norm": ({"norm": "spectrall"}, errors.UnknownNorm, "spectral"),
    "norm class": ({"norm": geodiag.norms.L2}, errors.ArgumentError, "instance"),
    "preconditioned": ({"norm": "preconditioned"}, errors.NormError, "Preconditioned\\(P\\)"),
    "lmo shapes": ({"norm": WrongShapes()}, errors.NormError, "wrong shape at 'weight'"),
    "muon": ({"norm": "muon", "where": "bias"}, errors.NormError, "matrix"),
    "start names": ({"start": {"w": torch.ones(3)}}, errors.ShapeError, "start"),
    "start shape": (
        {"start": {"weight": torch.ones(4, 3), "bias": torch.ones(3)}},
        errors.ShapeError, "weight"),
    "start zero": (
        {"start": {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}},
        errors.ArgumentError, "zero"),
    "a list for a batch": (
        {"data": [torch.zeros(2, 4), torch.zeros(2, 3)]}, errors.DataError, "one a tuple"),
    "dataset": (
        {"data": torch.utils.data.TensorDataset(torch.zeros(2, 4), torch.zeros(2, 3))},
        errors.DataError, "DataLoader"),
    "criterion adds, batches average": (
        {"criterion": nn.MSELoss(reduction="sum"),
         "data": [(torch.zeros(2, 4), torch.zeros(2, 3))] * 2},
        errors.ArgumentError, 'reduction="sum"'),
    "no loss given": ({"criterion": None}, errors.LossError, "criterion="),
    "criterion for norm": ({"norm": nn.MSELoss()}, errors.ArgumentError, "criterion="),
    "criterion class": ({"criterion": nn.MSELoss}, errors.ArgumentError, "callable"),
    "memory text": ({"memory": "1GB"}, errors.ArgumentError, "memory"),
    "weight none": (
        {"weight": lambda b: None, "data": [(torch.zeros(2, 4), torch.zeros(2, 3))] * 2},
        errors.DataError, "weight"),
    "weight of a sum": (
        {"weight": lambda b: 1.0, "reduction": "sum"}, errors.ArgumentError, "weight"),
    "estimator": ({"estimator": "lanczoss"}, errors.UnknownEstimator, "lanczos"),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_one_clear_error_and_the_model_as_it_was(row):
    change, error, words = ROWS[row]
    model, arguments = good()
    before = fingerprint(model)
    with pytest.raises(error, match=words) as caught:
        geodiag.sharpness(model, **(arguments | change))
    assert isinstance(caught.value, geodiag.GeodiagError)
    assert fingerprint(model) == before


def test_non_finite_is_returned_on_request():
    model, arguments = good()
    arguments["criterion"] = lambda a, b: (a * float("nan")).sum()
    result = geodiag.sharpness(model, throw=False, **arguments)
    assert result.status is geodiag.Status.NON_FINITE
    assert result.value != result.value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.requires_grad_(False), "no trainable parameters"),
        (lambda m: m.register_parameter("c", nn.Parameter(torch.ones(2) * 1j)), "not real"),
        (lambda m: m.register_parameter("m", nn.Parameter(torch.ones(2, device="meta"))),
         "several devices"),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_measured(change, words):
    model, arguments = good()
    change(model)
    with pytest.raises(errors.ParameterError, match=words):
        geodiag.sharpness(model, **arguments)


def test_a_model_without_parameters_and_one_without_shapes():
    with pytest.raises(errors.ParameterError, match="no trainable"):
        geodiag.sharpness(nn.ReLU(), criterion=nn.MSELoss(), data=(torch.ones(2), torch.ones(2)))
    with pytest.raises(errors.ParameterError, match="no shape yet"):
        geodiag.sharpness(nn.LazyLinear(3), criterion=nn.MSELoss(), data=(torch.ones(2, 2),) * 2)


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        ({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, errors.ArgumentError, "zero"),
        ({"weight": torch.ones(4, 3), "bias": torch.ones(3)}, errors.ShapeError, "weight"),
        ({"weight": torch.ones(3, 4)}, errors.ShapeError, "missing 'bias'"),
        ([1.0], errors.ShapeError, "blocks"),
        ({"weight": torch.full((3, 4), torch.nan), "bias": torch.ones(3)}, errors.ArgumentError,
         "finite"),
    ],
)  # fmt: skip
def test_steps_that_cannot_be_used(step, error, words):
    model, arguments = good()
    before = fingerprint(model)
    with pytest.raises(error, match=words):
        geodiag.directional_smoothness(model, step, **arguments)
    assert fingerprint(model) == before


def test_a_module_without_a_loss_says_what_to_pass():
    model, arguments = good()
    with pytest.raises(errors.LossError, match="criterion="):
        geodiag.sharpness(model, data=(arguments["data"][0],))


def test_a_certificate_without_an_envelope_is_refused_at_once():
    class Largest(geodiag.Norm):
        def value(self, d):
            return geodiag.norms.Linf().value(d)

        def lmo(self, g):
            return geodiag.norms.Linf().lmo(g)

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.ones(3, 2), torch.ones(3, 1)
    with pytest.raises(geodiag.errors.NormError, match="no quadratic envelope"):
        geodiag_torch.attach(
            optimizer,
            model,
            norm=Largest(),
            criterion=torch.nn.MSELoss(),
            data=data,
            certificate=True,
        )
