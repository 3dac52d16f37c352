"""geodiag: how close an optimizer runs to its stability limit, in its own geometry."""

from importlib.metadata import PackageNotFoundError, version

from geodiag import blocks, estimators, norms, sinks, testing
from geodiag.directional import DirectionalSmoothness, directional_smoothness
from geodiag.errors import GeodiagError
from geodiag.estimators import SharpnessEstimator
from geodiag.monitoring.monitor import Monitor
from geodiag.norms import Norm, QuadraticNorm
from geodiag.optimizers.thresholds import Threshold, Update, threshold
from geodiag.oracles import Oracle, Problem
from geodiag.plugins import hookimpl, registry
from geodiag.problems import problem
from geodiag.records import Record, read_records
from geodiag.report.plotting import plot
from geodiag.results import Bound, SharpnessResult, Status
from geodiag.sharpness import sharpness

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
    "Monitor",
    "Norm",
    "Oracle",
    "Problem",
    "QuadraticNorm",
    "Record",
    "SharpnessEstimator",
    "SharpnessResult",
    "Status",
    "Threshold",
    "Update",
    "available_norms",
    "blocks",
    "directional_smoothness",
    "estimators",
    "hookimpl",
    "norms",
    "plot",
    "problem",
    "read_records",
    "register",
    "register_norm",
    "sharpness",
    "sinks",
    "testing",
    "threshold",
]
