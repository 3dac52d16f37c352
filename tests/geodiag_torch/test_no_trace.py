"""A measurement leaves the model, its gradients, buffers, modes, RNGs and optimizer bit-identical.

Also when it raises: an exception, KeyboardInterrupt included, is injected at each call of the loss.
"""

from __future__ import annotations

import contextlib
import sys
import weakref

import pytest
import torch
from torch import nn

import geodiag
import geodiag_torch
from geodiag.monitoring.unmeasured import copied
from geodiag_torch.optimizers.selection import as_they_were
from tests.geodiag_torch.models import Calls, fingerprint


def setup():
    """A model with BatchNorm and dropout in training, gradients present, Adam with state."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 3)
    )
    model[2].eval()
    model[2].train()
    optimizer = torch.optim.Adam(model.parameters())
    x, y = torch.randn(12, 5), torch.randn(12, 3)
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    return model, optimizer, (x, y)


def calls():
    """Every public measuring call, each as a function of (model, criterion, data)."""

    def smoothness(kind):
        def call(model, criterion, data):
            step = {n: torch.full_like(p, 0.01) for n, p in model.named_parameters()}
            geodiag.directional_smoothness(
                model, step, "linf", kind=kind, criterion=criterion, data=data
            )

        return call

    def sharp(norm, **options):
        return lambda model, criterion, data: geodiag.sharpness(
            model, norm, criterion=criterion, data=data, **options
        )

    found = {f"sharpness {n}": sharp(n, max_hvps=12) for n in geodiag.available_norms()
             if n != "preconditioned"}  # fmt: skip
    found |= {f"engine {e}": sharp("l2", engine=e) for e in ("graph", "recompute")}
    found["engine finite-difference"] = sharp("l2", engine="finite-difference", max_hvps=5)
    found["frank-wolfe"] = sharp("spectral", estimator="frank_wolfe", max_hvps=10)
    kinds = ("remainder", "optimal", "pointwise", "path", "curvature")
    found |= {f"smoothness {k}": smoothness(k) for k in kinds}
    found["batches"] = lambda model, criterion, data: geodiag.sharpness(
        model, criterion=criterion, max_hvps=5,
        data=torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*data), batch_size=4, shuffle=True
        ),
    )  # fmt: skip
    return found


@pytest.mark.parametrize("name", calls())
def test_every_public_call_leaves_no_trace(name):
    model, optimizer, data = setup()
    before = fingerprint(model, optimizer)
    calls()[name](model, nn.MSELoss(), data)
    assert fingerprint(model, optimizer) == before


RAISING = ("graph", "recompute", "finite-difference")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", [*(f"engine {e}" for e in RAISING), "smoothness path", "batches"])
def test_a_raising_loss_leaves_no_trace(name, error):
    for fatal in range(8):
        model, optimizer, data = setup()
        before = fingerprint(model, optimizer)
        count = Calls()

        def criterion(output, target, fatal=fatal, count=count):
            torch.rand(1)  # moves the random state, as dropout would
            if count.add() == fatal + 1:
                raise error("injected")
            return nn.functional.mse_loss(output, target)

        with contextlib.suppress(error):
            calls()[name](model, criterion, data)
            assert count.n <= fatal  # over before the failure, which is never swallowed
        assert fingerprint(model, optimizer) == before


def test_the_fingerprint_sees_changes():
    model, optimizer, data = setup()
    before = fingerprint(model, optimizer)
    model(data[0])  # BatchNorm's running mean, and dropout's random state
    after = fingerprint(model, optimizer)
    assert after["buffers"] != before["buffers"]
    assert after["torch rng"] != before["torch rng"]


def test_training_continues_bit_identically_after_measurements():
    def train(measure):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.2), nn.Tanh(), nn.Linear(6, 3))
        x, y = torch.randn(12, 5), torch.randn(12, 3)
        optimizer = geodiag_torch.NonEuclideanGD(model.named_parameters(), 0.01, "spectral")
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            if measure:
                geodiag.sharpness(
                    model, "spectral", criterion=nn.MSELoss(), data=(x, y), max_hvps=8
                )
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(train(True), train(False))


class TestWhatIsPutBack:
    def test_tensors_are_as_they_were_where_one_cannot_be_replaced(self):
        a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        copies = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.int64)}
        with pytest.raises(RuntimeError):  # a parameter that requires gradients holds no integers
            as_they_were({"a": a, "b": b}, copies, lambda: None)
        assert torch.equal(a, torch.ones(2))
        assert torch.equal(b, torch.ones(2))

    def test_no_copy_of_the_model_is_kept_of_a_step_that_never_came(self, monkeypatch):
        copies = []

        def watching(tensors):
            found = copied(tensors)
            copies.extend(map(weakref.ref, found.values()))
            return found

        monkeypatch.setattr(sys.modules["geodiag_torch.optimizer_monitor"], "copied", watching)
        model = nn.Linear(4, 2)
        data = torch.randn(8, 4), torch.randn(8, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        mse = nn.functional.mse_loss
        monitor = geodiag_torch.attach(optimizer, model, criterion=mse, data=data, every=1)

        def closure():
            raise ValueError("no batch")

        with pytest.raises(ValueError, match="no batch"):
            optimizer.step(closure)
        assert len(copies) == 2
        monitor.detach()
        assert "not observed" in monitor.records[-1].note
        assert all(x() is None for x in copies)
