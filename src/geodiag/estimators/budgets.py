"""How many Hessian-vector products a measurement may spend, where ``max_hvps`` does not say.

Each includes the product that certifies the answer. Given matrices, whose products are free, have
limits of their own in the estimators.
"""

LANCZOS_BUDGET = 300  # quadratic norms; most end far earlier, by their residual
COLD_BUDGET = 60  # other norms, from nothing
LARGE_COLD_BUDGET = 14  # the same beyond 2**24 parameters, where one start climbs
RESTART_BUDGET = 20  # a cold restart, which has the last witness among its starts
DISTANT_BUDGET = 30  # the same far from the point of that witness, which then helps little
