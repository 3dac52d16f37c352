"""Estimators of generalized sharpness.

Lanczos      quadratic norms: exact (an eigenvalue)
Enumerate    polyhedral norms of at most 10 parameters: exact
Blockwise    sums of norms: part by part, then jointly
Ascent       any norm: line-search ascent from several starts
FrankWolfe   any norm: the paper's own procedure, to compare with
"""

from geodiag.estimators.ascent import Ascent
from geodiag.estimators.base import Measurement, Options, SearchMode, SharpnessEstimator
from geodiag.estimators.blockwise import Blockwise, choose
from geodiag.estimators.enumerate import Enumerate
from geodiag.estimators.frank_wolfe import FrankWolfe
from geodiag.estimators.lanczos import Lanczos
from geodiag.estimators.starts import as_start

__all__ = [
    "Ascent",
    "Blockwise",
    "Enumerate",
    "FrankWolfe",
    "Lanczos",
    "Measurement",
    "Options",
    "SearchMode",
    "SharpnessEstimator",
    "as_start",
    "choose",
]
