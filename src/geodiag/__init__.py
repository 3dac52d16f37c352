"""geodiag: how close an optimizer runs to its stability limit, in its own geometry."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geodiag import blocks, envelopes, errors, estimators, norms
from geodiag.core import spaces
from geodiag.cost import Cost, estimate_cost
from geodiag.critical_lr import CriticalLR, critical_lr
from geodiag.directional import DirectionalSmoothness, directional_smoothness
from geodiag.errors import GeodiagError
from geodiag.estimators import SharpnessEstimator
from geodiag.norms import Norm, QuadraticNorm
from geodiag.optimizers import filters
from geodiag.optimizers.thresholds import Threshold, Update, threshold
from geodiag.oracles import Oracle, Problem
from geodiag.plugins import hookimpl, registry
from geodiag.problems import problem
from geodiag.realized_edge import RealizedEdge, realized_edge
from geodiag.results import Bound, SharpnessResult, Status
from geodiag.sharpness import sharpness

if TYPE_CHECKING:
    from geodiag import records, sinks, testing
    from geodiag.checkpoints import along
    from geodiag.monitoring.monitor import Monitor
    from geodiag.records import Record, read_records, read_runs, to_pandas, to_polars
    from geodiag.report.plotting import plot

# Where the names are that a measurement does not need. Each is loaded when it is first used.
_LAZY = {
    "Monitor": "geodiag.monitoring.monitor",
    "Record": "geodiag.records",
    "along": "geodiag.checkpoints",
    "plot": "geodiag.report.plotting",
    "read_records": "geodiag.records",
    "read_runs": "geodiag.records",
    "records": "geodiag.records",
    "sinks": "geodiag.sinks",
    "testing": "geodiag.testing",
    "to_pandas": "geodiag.records",
    "to_polars": "geodiag.records",
}

register = registry.register
register_norm = registry.register_norm
register_estimator = registry.register_estimator


def __getattr__(name: str) -> Any:
    if name == "__version__":
        found: Any = _version()
    elif name in _LAZY:
        module = import_module(_LAZY[name])
        found = getattr(module, name, module)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__")), "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to load

    try:
        return version("geodiag")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"


def available_norms() -> list[str]:
    """The names of all registered norms, sorted.

    Examples:
        >>> "spectral" in geodiag.available_norms()
        True
    """
    return list(registry.norms())


def available_estimators() -> list[str]:
    """The names of all registered estimators, sorted.

    Examples:
        >>> "lanczos" in geodiag.available_estimators()
        True
    """
    return list(registry.estimators())


__all__ = [
    "Bound",
    "Cost",
    "CriticalLR",
    "DirectionalSmoothness",
    "GeodiagError",
    "Monitor",
    "Norm",
    "Oracle",
    "Problem",
    "QuadraticNorm",
    "RealizedEdge",
    "Record",
    "SharpnessEstimator",
    "SharpnessResult",
    "Status",
    "Threshold",
    "Update",
    "along",
    "available_estimators",
    "available_norms",
    "blocks",
    "critical_lr",
    "directional_smoothness",
    "envelopes",
    "errors",
    "estimate_cost",
    "estimators",
    "filters",
    "hookimpl",
    "norms",
    "plot",
    "problem",
    "read_records",
    "read_runs",
    "realized_edge",
    "records",
    "register",
    "register_estimator",
    "register_norm",
    "sharpness",
    "sinks",
    "spaces",
    "testing",
    "threshold",
    "to_pandas",
    "to_polars",
]
