"""Conformance checks for authors of norms, oracles and estimators; they need no test framework.

check_norm        value is a norm, lmo maximises over its unit ball, dual agrees
check_oracle      deterministic answers, and derivatives that agree with each other
check_estimator   attained values, true bounds, counts and budgets

Each raises a GeodiagError that names the property that fails, with the numbers, or returns None.

Examples:
    >>> from geodiag.testing import check_norm
    >>> check_norm(geodiag.norms.Linf(), {"W": np.ones((3, 4)), "b": np.ones(3)})
"""

from geodiag.testing.estimator import check_estimator
from geodiag.testing.norm import check_norm
from geodiag.testing.oracle import check_oracle

__all__ = ["check_estimator", "check_norm", "check_oracle"]
