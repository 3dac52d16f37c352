"""The hooks a geodiag plugin may implement, and the markers for them (pluggy).

A plugin is a module or an object with functions marked ``@geodiag.hookimpl``, found through the
entry-point group ``geodiag`` or passed to :func:`geodiag.register`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from geodiag.core.quantity import Quantity
    from geodiag.estimators.base import SharpnessEstimator
    from geodiag.norms.base import Norm
    from geodiag.oracles.base import Problem

PROJECT = "geodiag"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def geodiag_problem(model: Any, arguments: Mapping[str, Any]) -> Problem | None:
    """Turn ``model`` into a Problem if this plugin recognises it, else return None.

    An implementation may leave out ``arguments``: all keyword arguments of
    :func:`geodiag.problem` by name, at their defaults where they are not given. A recognised model
    with unusable arguments must raise a GeodiagError, not return None.
    """


@hookspec(firstresult=True)
def geodiag_checkpoint(problem: Problem, path: Path) -> Any:
    """The point that a file or a directory holds, for ``problem.at``; None for others' problems.

    A recognised problem with an unusable file must raise a GeodiagError, not return None. Nothing
    in a file may be executed.
    """


@hookspec
def geodiag_norms() -> Mapping[str, Callable[[], Norm]]:  # type: ignore[empty-body]
    """Norms by name: factories without required arguments; their docstrings' first lines list."""


@hookspec
def geodiag_estimators() -> Mapping[str, Callable[[], SharpnessEstimator]]:  # type: ignore[empty-body]
    """Estimators by name: factories without required arguments."""


@hookspec
def geodiag_quantities() -> Sequence[Quantity]:  # type: ignore[empty-body]
    """Quantities that a Monitor measures at each record, and that logs and plots carry."""
