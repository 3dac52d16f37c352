"""A start for norms whose LMO has one entry, as ℓ1, in which random starts are poor."""

from __future__ import annotations

import numpy as np

from geodiag.blocks import Blocks, map_blocks, namespace, zeros_like
from geodiag.estimators.base import Measurement

PROBES = 8
FREE_PROBES = 64


def moves_single_entries(m: Measurement) -> bool:
    """Whether the norm's LMO has one entry, as in ℓ1."""
    example = m.norm.lmo(m.oracle.space.random(np.random.default_rng(0)))
    xp = namespace(example)
    return sum(int(xp.sum(xp.astype(x != 0, xp.int32))) for x in example.values()) == 1


def steep_entries(m: Measurement) -> Blocks:
    """The LMO of the Hessian's diagonal, estimated by the mean of z ⊙ Hz over random signs z."""
    total = zeros_like(m.gradient)
    for _ in range(FREE_PROBES if m.unlimited else PROBES):
        signs = map_blocks(namespace(total).sign, m.oracle.space.random(m.rng))
        total = map_blocks(lambda t, z, h: t + z * h, total, signs, m.oracle.hvp(signs))
    xp = namespace(total)
    positive = map_blocks(lambda x: xp.where(x > 0, x, xp.zeros_like(x)), total)
    steep = m.norm.lmo(positive)
    return m.unit(steep) if float(m.norm.value(steep)) > 0 else m.random()
