"""What geodiag itself registers: its norms and estimators, and problems without a framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from geodiag import estimators, norms
from geodiag.blocks import is_array
from geodiag.core.validation import refuse
from geodiag.oracles import CallablesProblem, MatrixProblem, Problem
from geodiag.oracles.dense import is_sparse
from geodiag.plugins.specs import hookimpl


def block() -> norms.Norm:
    """Sum over tensors of ℓ2, ‖·‖₁,₂: block coordinate descent."""
    return norms.SumOver(norms.L2())


@hookimpl
def geodiag_norms() -> Mapping[str, Callable[[], norms.Norm]]:
    """The built-in norms."""
    return {
        "l2": norms.L2,
        "l1": norms.L1,
        "linf": norms.Linf,
        "block": block,
        "spectral": norms.Spectral,
        "muon": norms.Muon,
        "nuclear": norms.Nuclear,
        "frobenius": norms.Frobenius,
        "rms": norms.RMS,
        "preconditioned": norms.Preconditioned,
    }


@hookimpl
def geodiag_estimators() -> Mapping[str, Callable[[], estimators.SharpnessEstimator]]:
    """The built-in estimators."""
    return {
        "ascent": estimators.Ascent,
        "frank_wolfe": estimators.FrankWolfe,
        "lanczos": estimators.Lanczos,
        "blockwise": estimators.Blockwise,
        "enumerate": estimators.Enumerate,
    }


@hookimpl(trylast=True)
def geodiag_problem(model: Any, arguments: Mapping[str, Any]) -> Problem | None:
    """A matrix, a LinearOperator, or a pair of (loss, gradient) callables."""
    rest = dict(arguments)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        params, where = rest.pop("params"), rest.pop("where")
        refuse(rest, "a pair (loss, gradient)", "leave it out")
        return CallablesProblem(*model, params=params, where=where)
    operator = all(hasattr(model, a) for a in ("matvec", "shape", "dtype"))
    if operator or is_array(model) or is_sparse(model):
        shapes = rest.pop("shapes")
        refuse(rest, "a matrix", "leave it out; pass the rows and columns to measure")
        return MatrixProblem(model, shapes)
    return None
