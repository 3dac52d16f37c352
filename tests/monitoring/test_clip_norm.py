"""clip_norm=: the threshold of steps whose clipping no step shows, against whether the loss falls.

On ½⟨w, Hw⟩ along the top eigenvector a step of length ηc overshoots where ηc > 2|w|: there S is
above 2‖g‖/(ηc), ‖g‖ = λ|w|. Each case takes one real step just below and one just above that.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import geodiag
import geodiag_jax
from geodiag.errors import ArgumentError
from geodiag.optimizers.clipping import CONTRADICTED, NOT_WHOLE, STATED, TWICE
from geodiag_torch import attach, callbacks

LR, C = 0.8, 0.05
H = np.diag([18.0, 4.0, 3.0, 2.0, 1.0])


def at(ratio, across=0.0):
    """w with S/threshold of the clipped step at ``ratio``."""
    w = np.zeros(5)
    w[0] = LR * C / (2 * ratio)
    return w + across * w[0] * np.array([0.0, 1, -1, 1, -1])


class Module(nn.Module):
    def __init__(self, w, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=dtype))
        self.fixed = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, h):
        return 0.5 * self.w @ h @ self.w


def torch_loss(module, h):
    return module(h)


class Inside(torch.optim.Optimizer):
    """Clips what it received inside of its step, and leaves ``.grad`` as it is."""

    def __init__(self, params):
        super().__init__(params, {"lr": LR})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(LR * p.grad * min(1.0, C / float(p.grad.norm())))


def attached(make, w, other=H, clip=True, **options):
    """One step on ½⟨w, Hw⟩ with other data, of which ``other`` is the Hessian."""
    module = Module(w)
    module.fixed.requires_grad_(options.get("where") is not None)
    optimizer = make([p for p in module.parameters() if p.requires_grad])
    options = {"clip_norm": C, "sharpness": False} | options
    monitor = attach(
        optimizer, module, loss_fn=torch_loss, data=torch.tensor(H), every=1, **options
    )
    module(torch.tensor(other)).backward()
    if clip:
        nn.utils.clip_grad_norm_(module.parameters(), C)
    optimizer.step()
    return monitor.records[0], module.w.detach().numpy()


def numpy_step(w):
    new = w - LR * C * H @ w / np.linalg.norm(H @ w)
    monitor = geodiag.Monitor(H, lr=LR, every=1, clip_norm=C)
    return monitor.observe(0, {"x": w}, {"x": new}), new


def jax_step(w):
    """What optax shows is a multiple of the gradient, which may be another rate too."""

    def loss(params):
        return 0.5 * params["w"] @ H @ params["w"]

    clipped = optax.chain(optax.clip_by_global_norm(C), optax.sgd(LR))
    params = {"w": jnp.asarray(w)}
    state = clipped.init(params)
    updates, state = clipped.update({"w": jnp.asarray(H @ w)}, state)
    new = optax.apply_updates(params, updates)
    options = {"lr": LR, "every": 1, "sharpness": False}
    monitors = [geodiag_jax.Monitor(loss, "l2", **options, clip_norm=c) for c in (C, None)]
    record, plain = (each.observe(0, params, new, state) for each in monitors)
    assert "times what lr and the gradient predict" in plain.note
    return record, np.asarray(new["w"])


def inside_step(w):
    return attached(Inside, w, clip=False, norm="l2", update=geodiag.Update(LR))


@pytest.mark.parametrize("step", [numpy_step, jax_step, inside_step])
@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_the_loss_falls_below_the_threshold_alone(step, ratio):
    with jax.enable_x64(True):
        w = at(ratio)
        record, new = step(w)
    assert record.threshold == pytest.approx(2 * 18 * w[0] / (LR * C), rel=1e-6)
    assert 18 / record.threshold == pytest.approx(ratio, rel=1e-6)
    assert record.realized_edge == pytest.approx(ratio, rel=1e-4)
    assert (new @ H @ new < w @ H @ w) == (ratio < 1)
    assert STATED in record.note


OTHER = H + np.diag([0.0, 3.0, -1.0, 4.0, 1.0])


@pytest.mark.parametrize("ratio", [0.9, 1.1])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_on_other_data(ratio, momentum):
    """Of a batch only that its gradient was clipped is seen, and not by how much."""
    w = at(ratio, across=0.2)
    record, new = attached(lambda p: torch.optim.SGD(p, LR, momentum=momentum), w, OTHER)
    length = np.linalg.norm(H @ w)
    threshold = (1 + momentum) * 2 * length / (LR * C)
    assert record.threshold == pytest.approx(threshold, rel=1e-5)  # torch adds 1e-6 to the norm
    if not momentum:
        assert (new @ H @ new < w @ H @ w) == (ratio < 1)
    assert ("as if that factor lasted" in record.note) == bool(momentum)


def sgd(p):
    return torch.optim.SGD(p, LR)


def test_a_batch_that_was_not_clipped_has_the_plain_threshold():
    record, _ = attached(sgd, at(1.0, 0.2), OTHER, clip_norm=30.0)
    assert record.threshold == pytest.approx(2 / LR)
    assert STATED not in record.note


def test_what_is_seen_rules():
    """A multiple of the gradient is seen; and that it is longer than is said."""
    seen, _ = attached(sgd, at(0.9))
    told, _ = attached(sgd, at(0.9), clip_norm=None)
    assert (seen.threshold, seen.note) == (told.threshold, told.note)
    for options in ({"clip": False}, {"clip_norm": C / 2}):
        record, _ = attached(sgd, at(0.9), **options)
        plain, _ = attached(sgd, at(0.9), **options | {"clip_norm": None})
        assert record.threshold == plain.threshold
        assert CONTRADICTED in record.note


def test_of_a_part_of_the_parameters():
    """What is received of the part tells; where the clipping is inside, nothing does."""
    w = at(0.9, 0.2)
    record, _ = attached(sgd, w, OTHER, where="w")
    assert record.threshold == pytest.approx(2 * np.linalg.norm(H @ w) / (LR * C), rel=1e-5)
    problem = geodiag.problem(
        (lambda w: w["a"] @ w["a"] + w["b"] @ w["b"], lambda w: {n: 2 * x for n, x in w.items()}),
        params={"a": np.ones(2), "b": np.ones(2)},
        where="a",
    )
    monitor = geodiag.Monitor(problem, lr=LR, every=1, clip_norm=C)
    monitor.before(0)
    record = monitor.after({"a": np.zeros(2), "b": np.ones(2)})
    assert math.isnan(record.threshold)
    assert NOT_WHOLE in record.note


def test_a_normalized_rule_knows_no_clipping():
    rule, w = geodiag.Update(0.1, normalized=True), {"x": np.ones(5)}
    options = {"update": rule, "every": 1, "sharpness": False}
    plain, told = (
        geodiag.Monitor(H, **options, clip_norm=c).observe(0, w, {"x": np.zeros(5)})
        for c in (None, C)
    )
    assert told.threshold == plain.threshold
    assert STATED not in told.note


@pytest.mark.parametrize("given", [0, -1.0, math.nan, math.inf, "1", True, np.ones(2)])
def test_what_is_no_norm(given):
    model = nn.Linear(1, 1)
    makers = (
        lambda: geodiag.Monitor(H, lr=LR, clip_norm=given),
        lambda: geodiag_jax.Monitor(lambda p: p, "l2", lr=LR, clip_norm=given),
        lambda: attach(sgd(model.parameters()), model, loss_fn=lambda m, b: m(b).sum(),
                       data=torch.ones(1, 1), clip_norm=given),
        lambda: callbacks.HuggingFaceMonitor(clip_norm=given),
    )  # fmt: skip
    for make in makers:
        with pytest.raises(ArgumentError, match="clip_norm= must be positive and finite"):
            make()


def test_a_scale_that_is_stated_twice():
    rule = geodiag.Update(LR, scale=0.5)
    with pytest.raises(ArgumentError, match="both state what becomes of the gradient"):
        geodiag.Monitor(H, update=rule, clip_norm=C)
    monitor = geodiag.Monitor(H, update=lambda step: rule, clip_norm=C, every=1)
    record = monitor.observe(0, {"x": np.ones(5)}, {"x": np.zeros(5)})
    assert math.isnan(record.threshold)
    assert TWICE in record.note
