"""geodiag for JAX: loss callables as problems, a Monitor, and non-Euclidean descent in optax.

Importing ``jax`` and ``geodiag`` is enough to measure; import this package for its own names.
"""

from geodiag_jax.monitor import Monitor
from geodiag_jax.optimizers.geometry import geometry
from geodiag_jax.optimizers.non_euclidean import non_euclidean_gd
from geodiag_jax.problem import JaxProblem
from geodiag_jax.tracking import Sharpness, Tracker, TrackerState, tracker

__all__ = [
    "JaxProblem",
    "Monitor",
    "Sharpness",
    "Tracker",
    "TrackerState",
    "geometry",
    "non_euclidean_gd",
    "tracker",
]
