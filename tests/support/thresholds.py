"""``python -m tests.support.thresholds``: simulate each optimizer, and write docs/thresholds.md.

The optimizer itself runs on a quadratic whose S is just below its threshold, then just above it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import torch

import geodiag
from tests.geodiag_torch.optimizers import Quadratic, geometry, one_step, own_loss
from tests.geodiag_torch.test_thresholds import RULES, settled
from tests.support import thresholds_changed as changed
from tests.support import thresholds_optax as of_optax

PAGE = Path(__file__).parents[2] / "docs" / "thresholds.md"
BELOW, ABOVE = 0.98, 1.02  # S/threshold
STEPS, MOST = 600, 1e3
HEAD = f"""# Thresholds, simulated

The threshold that is read from each optimizer, against what the optimizer itself does. It runs for
{STEPS} steps on ½⟨w, Hw⟩, with a random positive definite H over a matrix and a vector, scaled so
that S in the optimizer's norm is {BELOW} and then {ABOVE} of the threshold. Second moments are
held: β₂ is 1 but for rounding. Growth is that of the largest |w|: far below 1 it has converged, far
above 1 it diverges. `python -m tests.support.thresholds` simulates all rows and writes this page;
the test suite measures each row again (those of optax with its slow tests).
[How they are read](attach.md#norm-and-threshold).

| rule | optimizer and its groups | threshold on S | growth at {BELOW} | growth at {ABOVE} |
|---|---|---|---|---|
"""


def prepared(name: str, scale: float) -> tuple[Any, Quadratic, float, float]:
    """(optimizer, model, threshold, S/threshold) of a rule."""
    model = Quadratic(scale)
    optimizer = RULES[name](model)
    settled(optimizer, model)
    live, _ = geometry(optimizer, model)
    edge = float(live.update(0).threshold(None))
    return (
        optimizer,
        model,
        edge,
        float(geodiag.sharpness(model, live.norm(), loss_fn=own_loss, rtol=1e-8)) / edge,
    )


def growth(name: str, ratio: float) -> float:
    """How much the largest |w| grows; the run ends where it has grown a thousandfold."""
    unit = prepared(name, 1.0)[-1]  # the ratio is proportional to the scale of the loss
    optimizer, model, *_ = prepared(name, ratio / unit)
    first = last = _largest(model)
    for _ in range(STEPS):
        one_step(optimizer, model)
        last = _largest(model)
        if last > MOST * first:
            break
    return last / first


def row(name: str) -> tuple[str, str, str]:
    """(rule, optimizer, threshold) as the page has them."""
    optimizer, _, edge, _ = prepared(name, 1.0)
    settings = "; ".join(_settings(optimizer))
    return name, f"`{type(optimizer).__name__}`: {settings}", f"{edge:.6g}"


def page() -> str:
    """The whole page, simulated."""
    found = HEAD + _table(RULES, row, growth)
    found += changed.HEAD + _table(changed.CHANGES, changed.row, changed.growth)
    with jax.enable_x64(True):
        found += of_optax.HEAD + _table(of_optax.RULES, of_optax.row, of_optax.growth)
        return found + changed.ONE_STEP + _table(changed.ONE, changed.told, changed.one_step)


def _table(names: Any, row: Any, growth: Any) -> str:
    found = ((*row(name), *(_said(growth(name, at)) for at in (BELOW, ABOVE))) for name in names)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in found)


def _said(factor: float) -> str:
    if 0.9 < factor < 1.1:  # of one step
        return f"{factor:.2f}"
    return "over 1000" if factor > MOST else f"{factor:.1e}"


def _largest(model: Quadratic) -> float:
    return max(float(p.detach().abs().max()) for p in model.parameters())


def _settings(optimizer: Any) -> list[str]:
    """What differs from the optimizer's defaults, of each group."""
    usual = type(optimizer)([torch.zeros(1)]).defaults
    found = []
    for group in optimizer.param_groups:
        own = {k: x for k, x in group.items() if k == "lr" or (k in usual and x != usual[k])}
        found.append(", ".join(f"{k} {_shown(x)}" for k, x in own.items()))
    return found


def _shown(x: Any) -> str:
    if isinstance(x, tuple):
        return "(" + ", ".join(map(_shown, x)) + ")"
    return str(x) if isinstance(x, (bool, str)) else f"{float(x):g}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
