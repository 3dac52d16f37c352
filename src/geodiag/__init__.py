"""geodiag: how close an optimizer runs to its stability limit, in its own geometry."""

from importlib.metadata import PackageNotFoundError, version

from geodiag import blocks, estimators, norms, testing
from geodiag.directional import DirectionalSmoothness, directional_smoothness
from geodiag.edge import Threshold, threshold
from geodiag.errors import GeodiagError
from geodiag.estimators import SharpnessEstimator
from geodiag.measure import sharpness
from geodiag.norms import Norm, QuadraticNorm
from geodiag.oracles import Oracle, Problem
from geodiag.plugins import hookimpl, registry
from geodiag.problems import problem
from geodiag.results import Bound, SharpnessResult, Status

try:
    __version__ = version("geodiag")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

register = registry.register
register_norm = registry.register_norm


def available_norms() -> list[str]:
    """The names of all registered norms, sorted."""
    return sorted(registry.norms())


__all__ = [
    "Bound",
    "DirectionalSmoothness",
    "GeodiagError",
    "Norm",
    "Oracle",
    "Problem",
    "QuadraticNorm",
    "SharpnessEstimator",
    "SharpnessResult",
    "Status",
    "Threshold",
    "available_norms",
    "blocks",
    "directional_smoothness",
    "estimators",
    "hookimpl",
    "norms",
    "problem",
    "register",
    "register_norm",
    "sharpness",
    "testing",
    "threshold",
]
