"""``estimator="auto"``: the estimator for a norm, by its structure."""

from __future__ import annotations

from geodiag.core.spaces import Space
from geodiag.estimators.base import SharpnessEstimator
from geodiag.estimators.blockwise import Blockwise, choose_single, is_blockwise
from geodiag.norms.base import Norm


def choose(norm: Norm, space: Space) -> SharpnessEstimator:
    """The estimator for a norm bound to ``space``: by what it is, never by its name."""
    return Blockwise() if is_blockwise(norm, space) else choose_single(norm, space)
