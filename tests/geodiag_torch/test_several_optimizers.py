"""Several optimizers on one model: one record of the whole step, in the norm that joins them.

Joint ratios are compared with dense eigenvalues in weights written here by hand, and with where the
run itself diverges; what a step is, with the points that the loop itself went through.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import geodiag
from geodiag import errors
from geodiag_torch import NonEuclideanGD, attach
from tests.geodiag_torch import optimizers as zoo
from tests.geodiag_torch.optimizers import Quadratic, own_loss
from tests.geodiag_torch.test_thresholds import diverges, settled

SGD, AdamW, Muon = torch.optim.SGD, torch.optim.AdamW, torch.optim.Muon
ADAM = {"betas": (0.8, 1 - 1e-12)}


class Both:
    """Two optimizers as one, for the loop of the simulation."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers
        self.state = {p: s for o in optimizers for p, s in o.state.items()}

    def zero_grad(self):
        for each in self.optimizers:
            each.zero_grad()

    def step(self):
        for each in self.optimizers:
            each.step()
        self.state = {p: s for o in self.optimizers for p, s in o.state.items()}


QUADRATIC = {
    "two rates": lambda m: (SGD([m.a], lr=0.02), SGD([m.b], lr=0.05)),
    "momentum and plain": lambda m: (SGD([m.a], lr=0.02, momentum=0.9), SGD([m.b], lr=0.02)),
    "sgd and adamw": lambda m: (
        SGD([m.a], lr=0.02, momentum=0.9, nesterov=True),
        AdamW([m.b], lr=0.05, weight_decay=9.0, **ADAM),
    ),
    "adamw and decayed sgd": lambda m: (
        AdamW([m.b], lr=0.03, weight_decay=0.0, **ADAM),
        SGD([m.a], lr=0.02, weight_decay=12.0, momentum=0.5),
    ),
}


@pytest.mark.parametrize("name", QUADRATIC)
def test_the_joint_threshold_is_where_both_together_diverge(name):
    def at(scale):
        model = Quadratic(scale)
        both = Both(*QUADRATIC[name](model))
        settled(both, model)
        monitor = attach(list(both.optimizers), model, loss_fn=own_loss, every=10**6, rtol=1e-8)
        both.zero_grad()
        model().backward()
        both.step()
        monitor.detach()
        (record,) = monitor.records
        assert not record.note
        return both, model, record.ratio

    *_, unit = at(1.0)  # in proportion to the loss, but for a coupled decay
    below, above = at(0.97 / unit), at(1.03 / unit)
    assert below[2] == pytest.approx(0.97, rel=1e-3)
    assert not diverges(*below[:2])
    assert diverges(*above[:2])


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.randn(40, 6).double(), torch.randn(40, 3).double()


mse = nn.functional.mse_loss


def two(model, **options):
    return SGD(model[0].parameters(), lr=0.2), SGD(model[2].parameters(), lr=0.4, **options)


def dense_ratio(model, x, y, rates):
    """λ_max of √η H √η over 2."""
    found = dict(model.named_parameters())
    names, shapes = list(found), [p.shape for p in found.values()]

    def loss(flat):
        parts = flat.split([s.numel() for s in shapes])
        own = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return mse(torch.func.functional_call(model, own, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in found.values()])
    root = torch.cat([torch.full((s.numel(),), r**0.5) for s, r in zip(shapes, rates, strict=True)])
    H = torch.autograd.functional.hessian(loss, flat) * root[:, None] * root
    return float(torch.linalg.eigvalsh(H)[-1]) / 2


# Which optimizers step at an iteration, in which order, and whether gradients are zeroed in place.
PATTERNS = {
    "both": lambda t: (0, 1),
    "the other first": lambda t: (1, 0),
    "changing order": lambda t: (0, 1) if t % 2 else (1, 0),
    "every third": lambda t: (0, 1) if t % 3 == 0 else (0,),
    "every third, first": lambda t: (1, 0) if t % 3 == 0 else (0,),
    "in turn": lambda t: (t % 2,),
    "one alone": lambda t: (1,),
}


@pytest.mark.parametrize("in_place", [False, True], ids=["none", "zero"])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_step_is_what_is_done_with_one_gradient(name, in_place):
    """One record for each iteration of the loop, from its first point to its last."""
    model, x, y = problem()
    optimizers = two(model)
    monitor = attach(list(optimizers), model, criterion=mse, data=(x, y), every=1)
    losses, kinds, slopes = [], [], []
    for t in range(6):
        for each in optimizers:
            each.zero_grad(set_to_none=not in_place)
        loss = mse(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        slopes.append(0.0)
        kinds.append(PATTERNS[name](t))
        for i in kinds[-1]:
            rate, own = (0.2, 0.4)[i], model[2 * i].parameters()
            slopes[-1] -= rate * sum(float((p.grad**2).sum()) for p in own)
            optimizers[i].step()
    monitor.detach()
    losses.append(float(mse(model(x), y).detach()))
    assert [r.step for r in monitor.records] == list(range(6))
    for r, kind, slope, before, after in zip(
        monitor.records, kinds, slopes, losses[:-1], losses[1:], strict=True
    ):
        assert r.loss == pytest.approx(before, rel=1e-12)
        assert r.realized_edge == pytest.approx(1 + (after - before) / -slope, rel=1e-6)
        assert math.isfinite(r.sharpness)
        assert math.isfinite(r.ratio) == (len(kind) == 2)
        assert ("took no part in the step" in r.note) == (len(kind) < 2)
        assert "differs" not in r.note


def test_the_joint_ratio_and_the_step_of_both():
    model, x, y = problem()
    first, second = two(model)
    expected = dense_ratio(model, x, y, (0.2, 0.2, 0.4, 0.4))
    w = [p.detach().clone() for p in model.parameters()]
    monitor = attach([first, second], model, criterion=mse, data=(x, y), rtol=1e-8)
    loss = mse(model(x), y)
    loss.backward()
    slope = sum(float((p.grad * -r * p.grad).sum()) for p, r in zip(
        model.parameters(), (0.2, 0.2, 0.4, 0.4), strict=True))  # fmt: skip
    first.step()
    assert not monitor.records
    first.zero_grad()  # as many loops do, before the other steps
    second.step()
    (record,) = monitor.records
    after = float(mse(model(x), y).detach())
    assert record.ratio == pytest.approx(expected, rel=1e-6)
    assert record.realized_edge == pytest.approx(1 + (after - loss.item()) / -slope, rel=1e-6)
    assert not record.note
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), w, strict=True))


def test_training_is_bit_identical():
    def trained(attached):
        model, x, y = problem()
        optimizers = (
            Muon([model[0].weight, model[2].weight], lr=0.02),
            AdamW([model[0].bias, model[2].bias], lr=0.01),
        )
        if attached:
            attach(list(optimizers), model, criterion=mse, data=(x, y), every=2)
        for _ in range(6):
            for each in optimizers:
                each.zero_grad()
            mse(model(x), y).backward()
            for each in optimizers:
                each.step()
        return [p.detach() for p in model.parameters()]

    assert all(map(torch.equal, trained(False), trained(True)))


def muon_with_adamw(**muon):
    model, x, y = problem()
    options = {"momentum": 0.95, "nesterov": True, "weight_decay": 0.1} | muon
    optimizers = (
        Muon([model[0].weight, model[2].weight], lr=0.02, **options),
        AdamW([model[0].bias, model[2].bias], lr=0.01, weight_decay=0.0),
    )
    monitor = attach(list(optimizers), model, criterion=mse, data=(x, y), every=1)
    for _ in range(4):
        for each in optimizers:
            each.zero_grad()
        mse(model(x), y).backward()
        for each in optimizers:
            each.step()
    return model, monitor


def test_muon_with_adamw_has_parts_and_no_ratio_of_one():
    _, monitor = muon_with_adamw()
    for r in monitor.records:
        assert math.isnan(r.ratio)
        assert math.isnan(r.sharpness)
        assert math.isfinite(r.realized_edge)
        assert math.isfinite(r.curvature)
        assert r.sharpness_muon > 0
        assert math.isnan(r.ratio_muon)
        assert r.ratio_adam == pytest.approx(r.sharpness_adam / r.threshold_adam)
        assert r.threshold_adam == pytest.approx(2 / 0.01 * 19)
        assert "differs" not in r.note
        assert "no threshold: the step has two geometries, which no norm joins" in r.note
        assert "muon: no threshold: none established for normalized updates with" in r.note
        assert ("held fixed" in r.note) == (r.step == 0)


def test_the_parts_are_sharpnesses_with_the_other_parameters_held():
    model, x, y = problem()
    optimizers = (
        Muon([model[0].weight, model[2].weight], lr=0.02, momentum=0.0, nesterov=False,
             weight_decay=0.0),
        SGD([model[0].bias, model[2].bias], lr=0.3),
    )  # fmt: skip
    options = {"criterion": mse, "data": (x, y)}
    biases = geodiag.sharpness(model, "l2", where="bias", rtol=1e-8, **options)
    matrices = geodiag.sharpness(model, "muon", where="weight", **options)
    monitor = attach(list(optimizers), model, every=1, **options)
    mse(model(x), y).backward()
    for each in optimizers:
        each.step()
    (record,) = monitor.records
    assert record.sharpness_sgd == pytest.approx(biases.value, rel=1e-3)
    assert record.ratio_sgd == pytest.approx(biases.value * 0.3 / 2, rel=1e-3)
    assert record.sharpness_muon == pytest.approx(matrices.value, rel=0.02)
    assert record.threshold_muon == pytest.approx(2 * matrices.dual_norm / 0.02, rel=1e-6)


def test_normalized_rules_have_the_maximum():
    """Sign descent beside orthogonalised: S in max(|a|_∞/η₁, ‖W‖_op/η₂) from one enumeration."""
    model, x, y = problem()
    sign = zoo.SignSGD([model[0].bias, model[2].bias], lr=0.01)
    exact = {"ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 40}
    muon = Muon([model[0].weight, model[2].weight], lr=0.03, momentum=0.0, nesterov=False,
                weight_decay=0.0, **exact)  # fmt: skip
    joint = geodiag.norms.ByParameter(
        {"bias": geodiag.norms.Linf(), "weight": geodiag.norms.Muon()}, radii={"weight": 3.0}
    )
    expected = geodiag.sharpness(model, joint, criterion=mse, data=(x, y))
    monitor = attach([sign, muon], model, criterion=mse, data=(x, y), every=1)
    mse(model(x), y).backward()
    sign.step(), muon.step()
    (record,) = monitor.records
    assert record.sharpness == pytest.approx(expected.value, rel=0.02)
    assert record.threshold == pytest.approx(2 * expected.dual_norm / 0.01, rel=1e-6)


def test_descents_in_two_norms_are_one_in_the_root_of_their_squares():
    """At the same norm in all, that is the descent of the whole; else of Σ‖d_i‖_i²/η_i."""
    model, x, y = problem()
    spectral = NonEuclideanGD([("w", model[0].weight)], 0.02, "spectral")
    rest = SGD([model[0].bias, *model[2].parameters()], lr=0.05)
    joint = geodiag.norms.ByParameter(
        {"^0.weight": geodiag.norms.Spectral(), ".*": geodiag.norms.L2()},
        over=geodiag.norms.L2Over,
        radii={".*": 2.5**0.5},
    )
    expected = geodiag.sharpness(model, joint, criterion=mse, data=(x, y))
    monitor = attach([spectral, rest], model, criterion=mse, data=(x, y), every=1)
    mse(model(x), y).backward()
    spectral.step(), rest.step()
    (record,) = monitor.records
    assert record.ratio == pytest.approx(expected.value * 0.02 / 2, rel=0.02)
    # The joint step is −η‖g‖*·lmo(g) in that norm, so that ζ is ηD/2 in it.
    zeta = record.directional_smoothness * 0.02 / 2
    assert record.realized_edge == pytest.approx(zeta, rel=1e-6)


def test_a_state_is_resumed():
    _, monitor = muon_with_adamw()
    state = monitor.state_dict()
    assert set(state["parts"]) == {"muon", "adam"}
    _, other = muon_with_adamw()
    other.load_state_dict(state)
    assert other.state_dict()["parts"] == state["parts"]


def test_a_record_of_parts_is_read_again(tmp_path):
    _, monitor = muon_with_adamw()
    for name in ("run.jsonl", "run.csv"):
        for sink in geodiag.sinks.as_sinks(str(tmp_path / name)):
            for r in monitor.records:
                sink.write(r)
            sink.close()
        again = geodiag.read_records(tmp_path / name)
        assert [r.ratio_adam for r in again] == [r.ratio_adam for r in monitor.records]


def bad(model, other):
    p = list(model.parameters())
    return {
        "takes each optimizer once": lambda: [],
        "takes a torch.optim.Optimizer": lambda: [SGD(p, lr=0.1), "adam"],
        "each optimizer once": lambda: [o := SGD(p, lr=0.1), o],
        "hold the same parameter": lambda: [SGD(p, lr=0.1), AdamW(p[1:], lr=0.1)],
        "AdamW holds no parameter of the model": lambda: [
            SGD(p, lr=0.1),
            AdamW(other.parameters(), lr=0.1),
        ],
    }


@pytest.mark.parametrize("what", bad(nn.Linear(1, 1), nn.Linear(1, 1)))
def test_bad_lists(what):
    model, x, y = problem()
    optimizers = bad(model, nn.Linear(2, 2))[what]()
    with pytest.raises(errors.GeodiagError, match=what):
        attach(optimizers, model, criterion=mse, data=(x, y))
