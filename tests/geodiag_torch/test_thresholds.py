"""The threshold that is read from an optimizer, against where the optimizer itself diverges.

On a quadratic it converges where S is just below the threshold, and diverges just above it.
"""

from __future__ import annotations

import math

import pytest
import torch

import geodiag
from geodiag_torch import NonEuclideanGD
from tests.geodiag_torch import optimizers as zoo
from tests.geodiag_torch.optimizers import Quadratic, geometry, one_step, own_loss, two_groups

SGD, RMSprop = torch.optim.SGD, torch.optim.RMSprop
Adam, AdamW, NAdam = torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam


def halved(optimizer):
    """After a schedule has halved its learning rate."""
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step()
    schedule.step()
    return optimizer


RULES = {
    "sgd": lambda m: SGD(m.parameters(), lr=0.02),
    "decay": lambda m: SGD(m.parameters(), lr=0.02, weight_decay=20.0),
    "momentum": lambda m: SGD(m.parameters(), lr=0.02, momentum=0.9),
    "momentum, decay": lambda m: SGD(m.parameters(), lr=0.02, momentum=0.6, weight_decay=30.0),
    "nesterov": lambda m: SGD(m.parameters(), lr=0.02, momentum=0.7, nesterov=True),
    "nesterov, decay": lambda m: SGD(
        m.parameters(), lr=0.02, momentum=0.7, nesterov=True, weight_decay=20.0
    ),
    "groups": lambda m: SGD(two_groups(m, momentum=0.5), lr=0.02),
    "tensor lr": lambda m: SGD(m.parameters(), lr=torch.tensor(0.02)),
    "schedule, halved": lambda m: halved(SGD(m.parameters(), lr=0.04, momentum=0.9)),
    "undamped": lambda m: SGD(m.parameters(), lr=0.02, dampening=0.3),  # without momentum: no use
    "dampening": lambda m: SGD(m.parameters(), lr=0.02, momentum=0.8, dampening=0.5),
    "an average": lambda m: SGD(m.parameters(), lr=0.02, momentum=0.7, dampening=0.7),
    "dampening, decay": lambda m: SGD(
        m.parameters(), lr=0.02, momentum=0.6, dampening=0.3, weight_decay=30.0
    ),
    "adam": lambda m: Adam(m.parameters(), lr=0.02, betas=(0.9, 1 - 1e-12)),
    "adam groups": lambda m: Adam(two_groups(m, betas=(0.5, 1 - 1e-12)), lr=0.02),
    "adam, two second decays": lambda m: Adam(
        [
            {"params": [m.a], "betas": (0.5, 1 - 1e-12)},
            {"params": [m.b], "betas": (0.5, 1 - 1e-11)},
        ],
        lr=0.02,
    ),
    "adam without average": lambda m: Adam(m.parameters(), lr=0.02, betas=(0.0, 1 - 1e-12)),
    "adamw": lambda m: AdamW(m.parameters(), 0.02, betas=(0.8, 1 - 1e-12), weight_decay=20.0),
    "decoupled": lambda m: Adam(
        m.parameters(), 0.02, betas=(0.8, 1 - 1e-12), weight_decay=20.0, decoupled_weight_decay=True
    ),
    "rmsprop": lambda m: RMSprop(m.parameters(), lr=0.02, alpha=1 - 1e-12, momentum=0.8),
    "nadam": lambda m: NAdam(m.parameters(), 0.02, (0.8, 1 - 1e-12), momentum_decay=1.0),
    "nadam, decay": lambda m: NAdam(
        m.parameters(), 0.02, (0.8, 1 - 1e-12), 1e-8, 20.0, 1.0, decoupled_weight_decay=True
    ),
    "qhm": lambda m: zoo.QHM(m.parameters(), 0.02, 0.9, 0.7),
    "qhm, decay": lambda m: zoo.QHM(m.parameters(), 0.02, 0.8, 0.6, weight_decay=20.0),
    "qhm, direct decay": lambda m: zoo.QHM(m.parameters(), 0.02, 0.8, 0.6, 20.0, "direct"),
    "ademamix": lambda m: zoo.AdEMAMix(m.parameters(), 0.02, (0.8, 1 - 1e-12, 0.9), 2.0),
    "ademamix, decay": lambda m: zoo.AdEMAMix(
        m.parameters(), 0.02, (0.8, 1 - 1e-12, 0.95), 3.0, weight_decay=10.0
    ),
    "dampened groups": lambda m: SGD(
        [{"params": [m.a], "dampening": 0.5}, {"params": [m.b]}], lr=0.02, momentum=0.9
    ),
    "groups by momentum": lambda m: SGD(
        [{"params": [m.a], "momentum": 0.9, "nesterov": True}, {"params": [m.b], "lr": 0.05}], 0.02
    ),
    "groups by decay": lambda m: SGD(
        [{"params": [m.a], "weight_decay": 30.0}, {"params": [m.b], "momentum": 0.5}], lr=0.02
    ),
    "adamw groups by decay": lambda m: AdamW(
        [{"params": [m.a], "weight_decay": 40.0}, {"params": [m.b], "weight_decay": 0.0}],
        0.02,
        betas=(0.8, 1 - 1e-12),
    ),
}


def settled(optimizer, model):
    """Small parameters, second moments large beside all to come, a step count that rounds."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e-6)
            p.grad = torch.zeros_like(p)
    optimizer.step()
    for at, state in enumerate(optimizer.state.values()):
        for key, x in state.items():
            if key == "step":
                x.fill_(1e9)
            elif key == "mu_product":  # NAdam's bias correction, long after the start
                x.zero_()
            elif "sq" in key:
                x.copy_(torch.linspace(1, 2 + at, x.numel(), dtype=x.dtype).reshape(x.shape))


def diverges(optimizer, model, steps=600):
    """Whether parameters of about 1e-6 grow beyond 1e-3, still without weight for the moments."""
    for _ in range(steps):
        one_step(optimizer, model)
        if max(float(p.detach().abs().max()) for p in model.parameters()) > 1e-3:
            return True
    return False


@pytest.mark.parametrize("name", RULES)
def test_the_threshold_is_where_the_optimizer_diverges(name):
    def at(scale):
        model = Quadratic(scale)
        optimizer = RULES[name](model)
        settled(optimizer, model)
        live, _ = geometry(optimizer, model)
        s = geodiag.sharpness(model, live.norm(), loss_fn=own_loss, rtol=1e-8)
        return optimizer, model, float(s) / float(live.update(0).threshold(None))

    *_, unit = at(1.0)  # the ratio is proportional to the scale of the loss
    below, above = at(0.98 / unit), at(1.02 / unit)
    assert below[2] == pytest.approx(0.98, rel=1e-6)
    assert not diverges(*below[:2])
    assert diverges(*above[:2])


UNKNOWN = {
    "maximize": lambda m: SGD(m.parameters(), lr=0.1, maximize=True),
    "coupled weight decay": lambda m: Adam(m.parameters(), weight_decay=0.1),
    "preconditioner": lambda m: RMSprop(m.parameters(), weight_decay=0.1),
    "not positive": lambda m: SGD(m.parameters(), lr=0.0),
    "learning rate of a group": lambda m: SGD(two_groups(m, factor=0.0)),
    "groups differ in momentum": lambda m: zoo.Lion(
        [{"params": [m.a], "betas": (0.0, 0.9)}, {"params": [m.b], "betas": (0.9, 0.9)}]
    ),
    "no norm expresses": lambda m: NonEuclideanGD(two_groups(m), 0.1, "spectral"),
}


@pytest.mark.parametrize("reason", UNKNOWN)
def test_no_threshold_and_why(reason):
    model = Quadratic()
    optimizer = UNKNOWN[reason](model)
    one_step(optimizer, model)
    live, space = geometry(optimizer, model)
    assert reason in live.update(0).unknown
    live.norm().bind(space)  # there is a norm to measure in all the same


@pytest.mark.parametrize(
    "make",
    [
        lambda m: torch.optim.Muon([m.a], momentum=0.9, weight_decay=0.0),
        lambda m: torch.optim.Muon([m.a], momentum=0.0, nesterov=False, weight_decay=0.1),
        lambda m: zoo.Lion([m.a]),
        lambda m: zoo.SignSGD([m.a], weight_decay=0.1),
    ],
    ids=["muon momentum", "muon decay", "lion", "sign decay"],
)
def test_normalized_with_momentum_or_decay_has_none(make):
    model = Quadratic()
    live, _ = geometry(make(model), model, where="a")
    edge = live.update(0).threshold(1.0)
    assert math.isnan(edge)
    assert "none established" in edge.provenance


def test_immaterial_differences_in_decay_do_not_matter():
    model = Quadratic()
    groups = [
        {"params": [model.a], "weight_decay": 0.1},
        {"params": [model.b], "weight_decay": 0.0},
    ]
    live, _ = geometry(SGD(groups, lr=0.1), model)
    assert float(live.update(0).threshold(None)) == pytest.approx(20 - 0.1)  # the lower one


def test_the_options_are_read_at_each_question():
    model = Quadratic()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    live, _ = geometry(optimizer, model)
    assert live.update(0).threshold(None) == pytest.approx(38.0)
    optimizer.param_groups[0].update(lr=0.05, momentum=0.0)
    assert live.update(1).threshold(None) == pytest.approx(40.0)
    optimizer.load_state_dict(SGD(model.parameters(), lr=0.5).state_dict())
    assert live.update(1).threshold(None) == pytest.approx(4.0)
