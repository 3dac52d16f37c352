"""Problems and oracles that need no framework, and the contracts that adapters fulfil."""

from geodiag.oracles.base import NOT_FINITE, Oracle, Problem
from geodiag.oracles.callables import CallablesProblem
from geodiag.oracles.crosscheck import CrossCheck, asymmetry, cross_check
from geodiag.oracles.dense import MatrixOracle, MatrixProblem
from geodiag.oracles.differences import Differences, finite_difference_hvp, jittered_hvp, same_loss
from geodiag.oracles.wrappers import CountingOracle, DelegatingOracle

__all__ = [
    "NOT_FINITE",
    "CallablesProblem",
    "CountingOracle",
    "CrossCheck",
    "DelegatingOracle",
    "Differences",
    "MatrixOracle",
    "MatrixProblem",
    "Oracle",
    "Problem",
    "asymmetry",
    "cross_check",
    "finite_difference_hvp",
    "jittered_hvp",
    "same_loss",
]
