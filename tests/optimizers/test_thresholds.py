"""Each threshold against the spectral radius of the update's own linear map on λw²/2.

The map is read off a simulated update, column by column, so no formula is shared: just below the
threshold its spectral radius is below 1, just above it is above 1.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import geodiag
from geodiag.errors import ArgumentError


def update(w, m, lam, lr, momentum, ema, nesterov, weight_decay, decoupled):
    """One step as torch.optim.SGD, Adam's averages or AdamW's decay take it, on L = λw²/2."""
    g = lam * w
    if weight_decay and not decoupled:
        g = g + weight_decay * w
    if weight_decay and decoupled:
        w = w - lr * weight_decay * w
    if not momentum:
        return w - lr * g, m
    share = 1 - momentum if ema else 1.0
    m = momentum * m + share * g
    step = share * g + momentum * m if nesterov else m
    return w - lr * step, m


def radius(lam, **settings):
    """The spectral radius of (w, m) ↦ (w⁺, m⁺)."""
    columns = [update(*unit, lam, **settings) for unit in ((1.0, 0.0), (0.0, 1.0))]
    M = np.array(columns).T
    return np.abs(np.linalg.eigvals(M if settings["momentum"] else M[:1, :1])).max()


ROWS = [
    (momentum, ema, nesterov, decay, decoupled)
    for momentum in (0.0, 0.5, 0.9)
    for ema in (False, True)
    for nesterov in (False, True)
    for decay in (0.0, 0.1)
    for decoupled in (False, True)
    if momentum or not (ema or nesterov)
]


@pytest.mark.parametrize("lr", [1e-3, 0.1])
@pytest.mark.parametrize(("momentum", "ema", "nesterov", "decay", "decoupled"), ROWS)
def test_stable_below_and_unstable_above(lr, momentum, ema, nesterov, decay, decoupled):
    settings = {
        "lr": lr,
        "momentum": momentum,
        "ema": ema,
        "nesterov": nesterov,
        "weight_decay": decay,
        "decoupled": decoupled,
    }
    edge = geodiag.threshold(**settings)
    assert edge.applies_to == "S"
    # An eigenvalue crosses −1 with a slope of order 1 in λ·lr: 1e-6 resolves it in float64.
    assert radius(float(edge) * (1 - 1e-6), **settings) < 1
    assert radius(float(edge) * (1 + 1e-6), **settings) > 1
    assert radius(float(edge) * 0.3, **settings) < 1


def test_the_known_rows():
    assert geodiag.threshold(0.01) == 200.0
    assert geodiag.threshold(0.1, momentum=0.9) == pytest.approx(38.0, rel=1e-15)
    assert geodiag.threshold(1.0, momentum=0.9, ema=True) == pytest.approx(38.0, rel=1e-14)
    assert geodiag.threshold(0.1, momentum=0.5, nesterov=True) == pytest.approx(15.0, rel=1e-15)
    assert geodiag.threshold(0.1, weight_decay=0.5) == 19.5


def test_normalized_sign_descent_at_its_edge():
    """SignGD on Σw²/2 in one dimension: from |w| = lr/2 it jumps to −w and back, for ever."""
    lr = 0.3
    edge = geodiag.threshold(lr, normalized=True)
    assert edge.applies_to == "S/‖g‖*"
    assert edge == pytest.approx(2 / lr, rel=1e-15)
    w = lr / 2
    S, dual = 1.0, abs(w)
    assert pytest.approx(float(edge), rel=1e-15) == S / dual
    assert w - lr * np.sign(w) == -w
    on_S = geodiag.threshold(lr, normalized=True, dual_norm=dual)
    assert on_S.applies_to == "S"
    assert on_S == pytest.approx(S, rel=1e-15)


@pytest.mark.parametrize("extra", [{"momentum": 0.9}, {"weight_decay": 0.1}])
def test_none_is_established(extra):
    edge = geodiag.threshold(0.1, normalized=True, **extra)
    assert math.isnan(edge)
    assert "none established" in edge.provenance


def test_provenance_names_what_was_assumed():
    assert "2603.05002" in geodiag.threshold(0.1).provenance
    said = geodiag.threshold(
        0.1, momentum=0.9, ema=True, nesterov=True, weight_decay=0.1, decoupled=True
    ).provenance
    for word in ("EMA", "Nesterov", "quadratic norm", "decoupled weight decay"):
        assert word in said
    assert "L2 weight decay" in geodiag.threshold(0.1, weight_decay=0.1).provenance
    assert repr(geodiag.threshold(0.5)).startswith("Threshold(4 on S; gradient descent in any norm")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"lr": 0.0}, "lr must be positive and finite. Got: 0.0"),
        ({"lr": -0.1}, "lr must be positive and finite. Got: -0.1"),
        ({"lr": math.nan}, "lr must be positive and finite. Got: nan"),
        ({"lr": math.inf}, "lr must be positive and finite. Got: inf"),
        ({"lr": 0.1, "momentum": 1.0}, r"momentum must lie in \[0, 1\). Got: 1.0"),
        ({"lr": 0.1, "momentum": -0.1}, r"momentum must lie in \[0, 1\). Got: -0.1"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay must be at least 0. Got: -1.0"),
        ({"lr": 0.1, "nesterov": True}, "nesterov=True needs momentum > 0. Got: momentum=0.0"),
        ({"lr": 0.1, "dual_norm": 1.0}, "dual_norm= belongs to normalized updates"),
        ({"lr": 0.1, "normalized": True, "dual_norm": -1.0}, "dual_norm must be at least 0"),
        ({"lr": 0.1, "normalized": True, "dual_norm": math.nan}, "dual_norm must be at least 0"),
    ],
)
def test_bad_input(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        geodiag.threshold(**arguments)
