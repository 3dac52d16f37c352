"""What is measured follows the optimizer; D is of the whole step, or absent.

The truth is the dense float64 Hessian of the loss over the tensors that the optimizer moves, by
torch.func on the flattened parameters.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
from geodiag_torch import attach

mse = nn.functional.mse_loss
SGD, Adam = torch.optim.SGD, torch.optim.Adam


def net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    return model, (torch.randn(32, 4).double(), torch.randn(32, 2).double())


def fit(model, batch):
    return mse(model(batch[0]), batch[1])


def hessian(loss, tensors):
    """The dense Hessian of ``loss()`` over these tensors."""
    with torch.enable_grad():
        first = torch.autograd.grad(loss(), tensors, create_graph=True)
        g = torch.cat([x.flatten() for x in first])
        rows = [torch.autograd.grad(x, tensors, retain_graph=True) for x in g]
    return torch.stack([torch.cat([x.flatten() for x in row]) for row in rows]).detach()


def top(loss, tensors, scale=None):
    """λ_max of the Hessian; with ``scale`` of P^(-1/2) H P^(-1/2), P given by tensor."""
    h = hessian(loss, tensors)
    if scale is not None:
        root = torch.cat([s.flatten() for s in scale]).rsqrt()
        h = root[:, None] * h * root
    return float(torch.linalg.eigvalsh(h)[-1])


def step(optimizer, loss):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def smoothness(loss, tensors, move):
    """D of the step that ``move()`` takes with these tensors, in ℓ2."""
    before = [t.detach().clone() for t in tensors]
    value = loss()
    g = torch.autograd.grad(value, tensors)
    move()
    s = [t.detach() - b for t, b in zip(tensors, before, strict=True)]
    slope = sum(float((a * b).sum()) for a, b in zip(g, s, strict=True))
    return (
        2
        * (float(loss().detach()) - float(value.detach()) - slope)
        / sum(float((x * x).sum()) for x in s)
    )


def adam_p(optimizer, p, t):
    """P of the t-th step of Adam with its default betas, from the state after it."""
    v = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**t)
    return (1 - 0.9**t) * (v.sqrt() + 1e-8)


def watched(optimizer, model, data, **arguments):
    return attach(optimizer, model, criterion=mse, data=data, every=1, rtol=1e-8, **arguments)


def close(found, expected):
    return found == pytest.approx(expected, rel=1e-6)


class TestBeyondTheModel:
    @pytest.mark.parametrize("make", [SGD, lambda p, lr: SGD(p, lr, momentum=0.9)])
    def test_a_second_module_under_the_optimizer(self, make):
        encoder, (x, y) = net()
        decoder = nn.Linear(2, 2).double()
        optimizer = make([*encoder.parameters(), *decoder.parameters()], lr=0.1)

        def loss():
            return mse(decoder(encoder(x)), y)

        monitor = attach(optimizer, encoder, loss_fn=lambda m, b: mse(decoder(m(b[0])), b[1]),
                         data=(x, y), every=1, rtol=1e-8)  # fmt: skip
        truths = []
        for _ in range(3):
            truths.append(top(loss, list(encoder.parameters())))
            step(optimizer, loss)
        for record, truth in zip(monitor.records, truths, strict=True):
            assert close(record.sharpness, truth)
            assert math.isnan(record.directional_smoothness)
            assert math.isnan(record.curvature)
            assert math.isnan(record.realized_edge)
            assert "param_groups[0].params[4]" in record.note
            assert "the model does not have" in record.note
            assert "no D, no ζ: the step also moved" in record.note

    def test_adam_is_measured_where_the_step_began(self):
        """Its norm is known after the step, when the weight of the loss has moved too."""
        model, (x, y) = net()
        weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        optimizer = Adam([*model.named_parameters(), ("weight", weight)], lr=0.05)

        def loss():
            return weight.exp() * mse(model(x), y) - weight

        monitor = attach(optimizer, model, loss_fn=lambda m, b: weight.exp() * mse(m(b[0]), b[1])
                         - weight, data=(x, y), every=1, rtol=1e-8)  # fmt: skip
        for t in range(1, 4):
            tensors = list(model.parameters())
            h = hessian(loss, tensors)
            step(optimizer, loss)
            p = torch.cat([adam_p(optimizer, q, t).flatten() for q in tensors])
            root = p.rsqrt()
            truth = float(torch.linalg.eigvalsh(root[:, None] * h * root)[-1])
            record = monitor.records[-1]
            assert close(record.sharpness, truth)
            assert math.isnan(record.directional_smoothness)
            assert "'weight'" in record.note
        assert weight.grad is not None

    def test_what_does_not_move_is_no_part_of_the_step(self):
        model, (x, y) = net()
        idle = nn.Linear(3, 3).double()
        still = nn.Parameter(torch.ones((), dtype=torch.float64))
        optimizer = SGD([{"params": [*model.parameters(), *idle.parameters()]},
                         {"params": [still], "lr": 0.0}], lr=0.1)  # fmt: skip

        def loss():
            return still * mse(model(x), y)

        monitor = attach(optimizer, model, loss_fn=lambda m, b: still * mse(m(b[0]), b[1]),
                         data=(x, y), every=1)  # fmt: skip
        truth = smoothness(loss, list(model.parameters()), lambda: step(optimizer, loss))
        assert close(monitor.records[0].directional_smoothness, truth)
        assert "the model does not have" in monitor.records[0].note
        assert "no D" not in monitor.records[0].note

    def test_parameters_that_the_optimizer_does_not_hold(self):
        model, data = net()
        optimizer = SGD(model[2].parameters(), lr=0.1)
        monitor = watched(optimizer, model, data)
        truth = top(lambda: fit(model, data), list(model[2].parameters()))
        step(optimizer, lambda: fit(model, data))
        (record,) = monitor.records
        assert close(record.sharpness, truth)
        assert math.isfinite(record.directional_smoothness)  # the step moved no other
        assert "the optimizer does not hold: '0.weight', '0.bias'" in record.note

    @pytest.mark.parametrize("make", [SGD, Adam])
    def test_where_leaves_out_a_part_of_the_step(self, make):
        model, data = net()
        optimizer = make(model.parameters(), lr=0.1)
        monitor = watched(optimizer, model, data, where="^2")
        tensors = list(model[2].parameters())
        h = hessian(lambda: fit(model, data), tensors)
        step(optimizer, lambda: fit(model, data))
        if make is Adam:
            root = torch.cat([adam_p(optimizer, q, 1).flatten() for q in tensors]).rsqrt()
            h = root[:, None] * h * root
        (record,) = monitor.records
        assert close(record.sharpness, float(torch.linalg.eigvalsh(h)[-1]))
        assert math.isnan(record.directional_smoothness)
        moved = "'0.weight', '0.bias', which is not measured"
        assert record.note == f"no D, no ζ: the step also moved {moved}"


class TestAlongTheRun:
    def check(self, monitor, optimizer, loss, tensors):
        """One step: S, D and the note against the truth."""
        chosen = list(tensors)
        truth = top(loss, chosen)
        d = smoothness(loss, chosen, lambda: step(optimizer, loss))
        record = monitor.records[-1]
        assert close(record.sharpness, truth)
        assert record.directional_smoothness == pytest.approx(d, rel=1e-4)
        return record

    def test_layers_are_unfrozen(self):
        model, data = net()
        model[0].requires_grad_(False)
        optimizer = SGD(model[2].parameters(), lr=0.1)
        monitor = watched(optimizer, model, data)
        loss = lambda: fit(model, data)  # noqa: E731
        assert self.check(monitor, optimizer, loss, model[2].parameters()).note == ""
        model[0].requires_grad_(True)
        record = self.check(monitor, optimizer, loss, model[2].parameters())
        assert "does not hold" in record.note
        optimizer.add_param_group({"params": model[0].parameters()})
        assert self.check(monitor, optimizer, loss, model.parameters()).note == ""
        assert self.check(monitor, optimizer, loss, model.parameters()).note == ""

    def test_layers_are_frozen(self):
        model, data = net()
        optimizer = SGD(model.parameters(), lr=0.1)
        monitor = watched(optimizer, model, data)
        loss = lambda: fit(model, data)  # noqa: E731
        self.check(monitor, optimizer, loss, model.parameters())
        model[0].requires_grad_(False)
        optimizer.zero_grad()
        assert self.check(monitor, optimizer, loss, model[2].parameters()).note == ""
        model[0].requires_grad_(True)
        self.check(monitor, optimizer, loss, model.parameters())

    def test_frozen_layers_that_an_old_gradient_still_moves(self):
        model, data = net()
        optimizer = SGD(model.parameters(), lr=0.1)
        monitor = watched(optimizer, model, data)
        step(optimizer, lambda: fit(model, data))
        model[0].requires_grad_(False)
        fit(model, data).backward()
        optimizer.step()
        assert "no D, no ζ: the step also moved '0.weight', '0.bias'" in monitor.records[-1].note

    def test_a_group_is_split_in_two_of_different_rates(self):
        model, data = net()
        optimizer = SGD(model.parameters(), lr=0.05)
        monitor = watched(optimizer, model, data)
        loss = lambda: fit(model, data)  # noqa: E731
        step(optimizer, loss)
        first, last = list(model[0].parameters()), list(model[2].parameters())
        optimizer.param_groups[0]["params"] = first
        optimizer.add_param_group({"params": last, "lr": 0.5})
        scale = [torch.full_like(p, 1.0) for p in first] + [torch.full_like(p, 0.1) for p in last]
        truth = top(loss, first + last, scale)
        step(optimizer, loss)
        assert close(monitor.records[-1].ratio, truth * 0.05 / 2)

    def test_a_state_is_loaded(self):
        model, data = net()
        optimizer = SGD(model.parameters(), lr=0.05)
        monitor = watched(optimizer, model, data)
        loss = lambda: fit(model, data)  # noqa: E731
        step(optimizer, loss)
        optimizer.load_state_dict(SGD(model.parameters(), lr=0.02, momentum=0.5).state_dict())
        record = self.check(monitor, optimizer, loss, model.parameters())
        assert record.threshold == pytest.approx(3 / 0.02)

    def test_a_new_head_of_another_shape(self):
        model, (x, y) = net()
        optimizer = SGD(model.parameters(), lr=0.05)
        loss = lambda: mse(model(x)[:, :1], y[:, :1])  # noqa: E731
        monitor = attach(optimizer, model, loss_fn=lambda m, b: mse(m(b[0])[:, :1], b[1][:, :1]),
                         data=(x, y), every=1, rtol=1e-8)  # fmt: skip
        self.check(monitor, optimizer, loss, model.parameters())
        old = list(model[2].parameters())
        model[2] = nn.Linear(6, 3).double()
        record = self.check(monitor, optimizer, loss, model[0].parameters())
        assert "the model does not have: 'param_groups[0].params[2]'" in record.note
        assert "does not hold: '2.weight', '2.bias'" in record.note
        kept = [p for p in optimizer.param_groups[0]["params"] if all(p is not q for q in old)]
        optimizer.param_groups[0]["params"] = [*kept, *model[2].parameters()]
        assert self.check(monitor, optimizer, loss, model.parameters()).note == ""

    def test_a_new_head_of_the_same_shape(self):
        model, data = net()
        optimizer = SGD([{"params": model[0].parameters()},
                         {"params": model[2].parameters(), "lr": 0.5}], lr=0.05)  # fmt: skip
        monitor = watched(optimizer, model, data)
        loss = lambda: fit(model, data)  # noqa: E731
        step(optimizer, loss)
        model[2] = nn.Linear(6, 2).double()
        optimizer.param_groups[1]["params"] = list(model[2].parameters())
        scale = [torch.ones_like(p) for p in model[0].parameters()]
        scale += [torch.full_like(p, 0.1) for p in model[2].parameters()]
        truth = top(loss, list(model.parameters()), scale)
        step(optimizer, loss)
        assert close(monitor.records[-1].ratio, truth * 0.05 / 2)
        assert monitor.records[-1].note == ""

    def test_another_precision(self):
        model, data = net()
        model.float()
        optimizer = SGD(model.parameters(), lr=0.05)

        def cast(m, batch):
            return mse(m(batch[0].to(m[0].weight.dtype)).double(), batch[1])

        monitor = attach(optimizer, model, loss_fn=cast, data=data, every=1, rtol=1e-8)
        loss = lambda: cast(model, data)  # noqa: E731
        step(optimizer, loss)
        model.double()
        self.check(monitor, optimizer, loss, model.parameters())

    def test_nothing_is_left(self):
        model, data = net()
        optimizer = SGD(model.parameters(), lr=0.05)
        monitor = watched(optimizer, model, data)
        loss = lambda: fit(model, data)  # noqa: E731
        step(optimizer, loss)
        optimizer.param_groups[0]["params"] = [nn.Parameter(torch.ones(2))]
        step(optimizer, loss)
        assert math.isnan(monitor.records[-1].sharpness)
        assert "the optimizer holds none of the parameters" in monitor.records[-1].note
        optimizer.param_groups[0]["params"] = list(model.parameters())
        self.check(monitor, optimizer, loss, model.parameters())

    def test_the_old_witness_is_a_start(self):
        """Unfreezing by a run in ℓ∞: never below what the smaller problem attained."""
        model, data = net()
        model[2].requires_grad_(False)
        optimizer = SGD(model.parameters(), lr=1e-6)
        monitor = attach(optimizer, model, "linf", criterion=mse, data=data, every=1)
        for at in range(4):
            if at == 3:
                model[2].requires_grad_(True)
            step(optimizer, lambda: fit(model, data))
        before, after = monitor.records[-2:]
        assert after.sharpness >= before.sharpness * (1 - 1e-3)


class TestPlainMonitor:
    def test_a_step_of_more_than_is_measured_has_no_d(self):
        model, data = net()
        optimizer = SGD(model.parameters(), lr=0.1)
        with geodiag.Monitor(model, lr=0.1, criterion=mse, data=data, where="^2") as monitor:
            monitor.before(0)
            step(optimizer, lambda: fit(model, data))
            record = monitor.after()
        assert math.isnan(record.directional_smoothness)
        assert "no D, no ζ: the step also moved '0.weight', '0.bias'" in record.note

    def test_the_same_of_callables(self):
        w = {"a": np.ones(2), "b": np.ones(3)}
        pair = (lambda v: (v["a"] ** 2).sum() * (v["b"] ** 2).sum(),
                lambda v: {"a": 2 * v["a"] * (v["b"] ** 2).sum(),
                           "b": 2 * v["b"] * (v["a"] ** 2).sum()})  # fmt: skip
        for moves in (False, True):
            with geodiag.Monitor(pair, params=w, lr=0.1, where="a", every=1) as monitor:
                monitor.before(0)
                w["a"] *= 0.9
                w["b"] *= 0.9 if moves else 1.0
                record = monitor.after()
            assert math.isnan(record.directional_smoothness) is moves
            assert ("no D, no ζ: the step also moved 'b'" in record.note) is moves
