"""The norm that is read from an optimizer, against the step that the optimizer takes.

That is −lr·lmo(g), or −lr·‖g‖*·lmo(g), in this norm.
"""

from __future__ import annotations

import copy
import math
import weakref

import pytest
import torch
from torch import nn

from geodiag import errors
from geodiag.norms import L2, Linf, Muon, Preconditioned, Spectral
from geodiag_torch import NonEuclideanGD
from tests.geodiag_torch import optimizers as zoo
from tests.geodiag_torch.optimizers import Quadratic, geometry, one_step, two_groups

SGD, Adam, AdamW, RMSprop = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
)


def assert_close(found, expected, rtol=1e-9):
    assert set(found) == set(expected)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=rtol, atol=1e-12)


PLAIN = {
    "sgd": lambda m: SGD(m.parameters(), lr=0.02),
    "sgd groups": lambda m: SGD(two_groups(m), lr=0.02),
    "spectral": lambda m: NonEuclideanGD(m.named_parameters(), 0.02, "spectral"),
    "l2 groups": lambda m: NonEuclideanGD(two_groups(m), 0.02, "l2"),
    "linf": lambda m: NonEuclideanGD(m.named_parameters(), 0.02, "linf", normalized=True),
    "linf groups": lambda m: NonEuclideanGD(two_groups(m), 0.02, "linf", normalized=True),
    "muon groups": lambda m: NonEuclideanGD(two_groups(m), 0.02, Muon(), normalized=True),
    "frobenius groups": lambda m: NonEuclideanGD(two_groups(m), 0.02, "frobenius", normalized=True),
    "sign": lambda m: zoo.SignSGD(m.parameters()),
    "sign groups": lambda m: zoo.SignSGD(two_groups(m)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_step_is_along_the_lmo_of_the_norm(name):
    model = Quadratic()
    optimizer = PLAIN[name](model)
    live, space = geometry(optimizer, model)
    norm, update = live.norm().bind(space), live.update(0)
    g, step = one_step(optimizer, model)
    factor = 1.0 if update.normalized else float(norm.dual(g))
    assert not update.unknown
    assert_close(step, {n: -update.lr * factor * d for n, d in norm.lmo(g).items()})


class Matrices(nn.Module):
    """A tall, a wide and a square matrix, and a kernel where one is wanted."""

    def __init__(self, kernel):
        super().__init__()
        shapes = [(6, 3), (2, 5), (4, 4)] + ([(8, 3, 3, 2)] if kernel else [])
        generator = torch.Generator().manual_seed(1)
        self.w = nn.ParameterList(
            [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        )

    def forward(self):
        return sum((p.exp() * torch.arange(1.0, p.numel() + 1).reshape(p.shape)).sum()
                   for p in self.w)  # fmt: skip


EXACT = {"ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 40, "momentum": 0.0,
         "nesterov": False, "weight_decay": 0.0}  # fmt: skip
MUONS = {
    "torch": lambda m: torch.optim.Muon(m.parameters(), lr=0.1, **EXACT),
    "torch, matched": lambda m: torch.optim.Muon(
        m.parameters(), lr=0.1, adjust_lr_fn="match_rms_adamw", **EXACT
    ),
    "torch, groups": lambda m: torch.optim.Muon(two_groups(m), **EXACT),
    "torch, both": lambda m: torch.optim.Muon(
        [{"params": [m.w[0]]}, {"params": [m.w[1], m.w[2]], "adjust_lr_fn": "match_rms_adamw"}],
        lr=0.1,
        **EXACT,
    ),
    "original": lambda m: zoo.SingleDeviceMuon(m.parameters()),
    "original, groups": lambda m: zoo.SingleDeviceMuon(two_groups(m)),
    "moonlight": lambda m: zoo.Muon(m.parameters()),
}


@pytest.mark.parametrize("name", MUONS)
def test_muon_steps_along_the_lmo(name):
    model = Matrices(kernel="original" in name)
    optimizer = MUONS[name](model)
    live, space = geometry(optimizer, model)
    norm, update = live.norm().bind(space), live.update(0)
    g, step = one_step(optimizer, model)
    assert update.normalized
    # Torch computes the polar factor in bfloat16: 2⁻⁸ an operation, and forty iterations.
    tolerance = 0.05 if "torch" in name else 1e-9
    for n, d in norm.lmo(g).items():
        error = torch.linalg.norm(step[n] + update.lr * d) / torch.linalg.norm(step[n])
        assert error < tolerance, n


def test_torch_muon_has_the_registered_norm():
    model = Matrices(False)
    for rule in ("original", "match_rms_adamw"):
        live, _ = geometry(torch.optim.Muon(model.parameters(), adjust_lr_fn=rule), model)
        assert repr(live.norm()) == repr(Muon(rule))


ADAPTIVE = {
    "adam": lambda m: Adam(m.parameters(), lr=0.02),
    "adam groups": lambda m: Adam(two_groups(m, eps=1e-3), lr=0.02),
    "adamw": lambda m: AdamW(m.parameters(), lr=0.02, weight_decay=0.0, betas=(0.8, 0.9)),
    "amsgrad": lambda m: Adam(m.parameters(), lr=0.02, amsgrad=True, betas=(0.5, 0.2)),
    "rmsprop": lambda m: RMSprop(m.parameters(), lr=0.02),
    "centered": lambda m: RMSprop(m.parameters(), lr=0.02, centered=True, eps=1e-2),
}


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_preconditioner_is_what_the_step_was_divided_by(name, steps):
    model = Quadratic(scale=0.1)
    optimizer = ADAPTIVE[name](model)
    for _ in range(steps):
        g, step = one_step(optimizer, model)
    live, space = geometry(optimizer, model)
    norm = live.norm().bind(space)
    averaged = {
        n: optimizer.state[p].get("exp_avg", g[n]).clone() for n, p in model.named_parameters()
    }
    expected = {n: -0.02 * x for n, x in norm.inverse_metric(averaged).items()}
    assert_close(step, expected, rtol=1e-8)


def test_the_preconditioner_is_a_copy():
    model = Quadratic()
    optimizer = Adam(model.parameters())
    one_step(optimizer, model)
    live, space = geometry(optimizer, model)
    norm = live.norm().bind(space)
    d = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    before = float(norm.value(d))
    one_step(optimizer, model)
    assert float(norm.value(d)) == before
    assert float(live.norm().bind(space).value(d)) != before


@pytest.mark.parametrize("make", [Adam, RMSprop])
def test_before_the_first_step_there_is_no_preconditioner(make):
    model = Quadratic()
    live, _ = geometry(make(model.parameters()), model)
    assert live.of_the_step(dict(model.named_parameters()))
    with pytest.raises(errors.NormError, match="not known yet at 'a'"):
        live.norm()


@pytest.mark.parametrize(
    ("make", "asked", "same"),
    [
        (lambda m: SGD(m.parameters(), lr=0.1), L2(), True),
        (lambda m: SGD(m.parameters(), lr=0.1), Spectral(), False),
        (lambda m: SGD(two_groups(m)), L2(), False),
        (lambda m: SGD(m.parameters(), lr=0.1), Preconditioned({"a": torch.ones(4, 2),
                                                                "b": torch.ones(3)}), True),
        (lambda m: zoo.SignSGD(m.parameters()), Linf(), True),
        (lambda m: zoo.SignSGD(two_groups(m)), Linf(), False),
        (lambda m: NonEuclideanGD(m.parameters(), 0.1, "spectral"), Spectral(), True),
        (lambda m: NonEuclideanGD(m.parameters(), 0.1, "muon"), Spectral(), False),
    ],
)  # fmt: skip
def test_a_norm_that_is_asked_for_has_a_threshold_if_it_is_the_optimizers(make, asked, same):
    model = Quadratic()
    live, _ = geometry(make(model), model, asked)
    assert live.norm() is asked
    assert not live.of_the_step(dict(model.named_parameters()))
    for _ in range(2):
        assert ("is not the geometry of" in live.update(0).unknown) is not same


def test_muon_of_square_matrices_is_spectral():
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.Muon(model.parameters(), lr=0.1, **EXACT)
    live, _ = geometry(optimizer, model, Spectral())
    assert not live.update(0).unknown


def test_an_unknown_optimizer_is_a_question():
    model = Quadratic()
    for make in (torch.optim.Adagrad, torch.optim.LBFGS):
        with pytest.raises(errors.ArgumentError, match="not known") as e:
            geometry(make(model.parameters()), model)
        for choice in ('"l2"', '"linf"', '"spectral"', "Preconditioned"):
            assert choice in str(e.value)
    live, _ = geometry(torch.optim.LBFGS(model.parameters()), model, L2())
    assert "LBFGS is not known" in live.update(0).unknown


def test_a_subclass_is_known_while_its_step_is_its_parents():
    class Renamed(SGD):
        pass

    class Other(SGD):
        def step(self, closure=None):
            return super().step(closure)

    model = Quadratic()
    live, _ = geometry(Renamed(model.parameters(), lr=0.1), model)
    assert isinstance(live.norm(), L2)
    with pytest.raises(errors.ArgumentError, match="Other"):
        geometry(Other(model.parameters(), lr=0.1), model)


def test_a_muon_of_other_options_is_a_question():
    class Muon(zoo._Plain):
        pass

    model = Quadratic()
    with pytest.raises(errors.ArgumentError, match="Muon is not known"):
        geometry(Muon([model.a], ns_steps=3), model, where="a")


def test_muon_with_adam_inside_is_two_geometries():
    model = Quadratic()
    groups = [
        {"params": [model.b], "lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0,
         "use_muon": False},
        {"params": [model.a], "lr": 0.2, "momentum": 0.0, "weight_decay": 0.0, "use_muon": True},
    ]  # fmt: skip
    for order in (groups, groups[::-1]):
        optimizer = zoo.MuonWithAuxAdam(copy.copy(order))
        with pytest.raises(errors.ArgumentError, match="two geometries"):
            geometry(optimizer, model)
        live, _ = geometry(optimizer, model, where="a")
        assert live.update(0).lr == 0.2
        assert live.norm().radii("a", (4, 2)) == pytest.approx(math.sqrt(2))
    with pytest.raises(errors.ArgumentError, match="two geometries"):
        geometry(zoo.Muon(model.parameters()), model)


def test_a_part_of_a_joint_step_has_no_threshold():
    model = Quadratic()
    for normalized, known in ((False, False), (True, True)):
        optimizer = NonEuclideanGD(model.parameters(), 0.1, "spectral", normalized)
        live, _ = geometry(optimizer, model, where="a")
        assert ("where=" in live.update(0).unknown) is not known
    live, _ = geometry(SGD(model.parameters(), lr=0.1), model, where="a")
    assert not live.update(0).unknown


def test_a_vanished_optimizer_is_an_error():
    model = Quadratic()
    live, _ = geometry(SGD(model.parameters(), lr=0.1), model)
    del live.alive
    with pytest.raises(errors.ArgumentError, match="gone"):
        live.update(0)


def test_no_gradient_outlives_its_step():
    model = Quadratic()
    optimizer = SGD(model.parameters(), lr=0.02)
    live, _ = geometry(optimizer, model)
    one_step(optimizer, model)
    live.norm()
    live.update(1)
    held = [weakref.ref(p.grad) for p in model.parameters()]
    optimizer.zero_grad()
    assert not any(ref() is not None for ref in held)
