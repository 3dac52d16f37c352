"""``lmos`` of a stack is the stack of ``lmo``, in every norm and array namespace."""

from __future__ import annotations

import numpy as np
import pytest

from geodiag import available_norms, norms
from geodiag.blocks import stack, unstack
from geodiag.core.spaces import Space
from geodiag.plugins import registry
from tests import truth

SHAPES = {"W": (2, 3), "V": (3, 2), "b": (2,), "s": (), "none": (0, 2)}
NORMS = {name: registry.norm(name) for name in set(available_norms()) - {"preconditioned"}} | {
    "l1 by max": norms.MaxOver(norms.L1(), radii=2.0),
    "linf by sum": norms.SumOver(norms.Linf(), radii={"b": 0.2}),
    "l1 by l2": norms.L2Over(norms.L1(), radii={"W": 3.0}),
    "nuclear by l2": norms.L2Over(norms.Nuclear()),
    "spectral by sum": norms.SumOver(norms.Spectral()),
    "mixed": norms.ByParameter({"W|V": norms.Nuclear(), ".": norms.L1()}, over=norms.SumOver),
}


@pytest.mark.parametrize("xp", ["numpy", "torch", "strict"], indirect=True)  # JAX: test_parity
@pytest.mark.parametrize("name", sorted(NORMS))
def test_a_stack_is_answered_row_by_row(name, xp):
    gs = [truth.to(xp, truth.blocks(seed, SHAPES)) for seed in range(3)]
    gs[1] = {n: -1e-6 * x for n, x in gs[1].items()}  # each row by its own scale
    norm = NORMS[name].bind(Space.of(gs[0]))
    found = unstack(norm.lmos(stack(gs)))
    for g, row in zip(gs, found, strict=True):
        for n, x in norm.lmo(g).items():
            # A random g has one maximiser, which a decomposition of so few entries finds to
            # rounding: 1e-12 leaves a hundredfold of what their condition makes of it.
            np.testing.assert_allclose(
                truth.back({n: row[n]})[n], truth.back({n: x})[n], atol=1e-12
            )
    zero = {n: 0 * x for n, x in gs[0].items()}
    for row in unstack(norm.lmos(stack([zero, gs[2]]))):
        assert float(norm.value(row)) <= 1 + 1e-12  # feasible and finite, at zero too
