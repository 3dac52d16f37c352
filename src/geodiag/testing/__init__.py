"""Conformance checks for authors of norms, oracles and estimators; they need no test framework.

    from geodiag.testing import check_norm

    def test_my_norm():
        check_norm(MyNorm(), {"W": np.ones((3, 4)), "b": np.ones(3)})

check_norm        value is a norm, lmo maximises over its unit ball, dual agrees
check_oracle      same answers to same questions, derivatives that agree with each other
check_estimator   honest values, bounds, counts and budgets

Each raises a GeodiagError that says which property broke, with the numbers; none returns anything.
"""

from geodiag.testing.estimator import check_estimator
from geodiag.testing.norm import check_norm
from geodiag.testing.oracle import check_oracle

__all__ = ["check_estimator", "check_norm", "check_oracle"]
