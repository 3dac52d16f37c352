"""Every error geodiag raises: what was wrong, what was got, what to do.

All derive from :class:`GeodiagError`, so one ``except`` catches them all; each also keeps the three
parts as attributes (``what``, ``got``, ``do``), so a tool can show them apart.
"""

from __future__ import annotations

from typing import Any

LONGEST = 300  # characters of a value that an error shows


def shown(x: Any) -> str:
    """``repr(x)`` for an error's text: cut short, and the type's name where there is none."""
    try:
        text = repr(x)
    except Exception:  # lists in lists beyond the stack, or the object's own fault
        return f"an object of type {type(x).__name__}"
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def first_line(e: BaseException) -> str:
    """The first line of an exception's text, or its type's name where there is none."""
    lines = str(e).strip().splitlines()
    return lines[0] if lines else type(e).__name__


class GeodiagError(Exception):
    """Base of all geodiag errors."""

    def __init__(self, what: str, *, got: Any = None, do: str | None = None) -> None:
        self.what, self.got, self.do = what, got, do
        parts = [what.rstrip(".") + "."]
        if got is not None:
            parts.append(f"Got: {got}.")
        if do is not None:
            parts.append(f"Do: {do.rstrip('.')}.")
        super().__init__(" ".join(parts))


class ArgumentError(GeodiagError, ValueError):
    """An argument has a value that cannot be used (``lr <= 0``, a zero step, an unknown option)."""


class UnknownModel(GeodiagError, TypeError):
    """No registered plugin recognises the model."""


class UnknownNorm(GeodiagError, LookupError):
    """No norm is registered under the name."""


class UnknownEstimator(GeodiagError, LookupError):
    """No estimator is registered under the name."""


class ParameterError(GeodiagError, ValueError):
    """The parameters to measure are missing, or of a kind that cannot be measured."""


class DataError(GeodiagError, ValueError):
    """The data are empty, exhausted, of an unknown form, or change from pass to pass."""


class LossError(GeodiagError, ValueError):
    """The loss is not a real scalar that depends on the parameters."""


class NonFiniteError(GeodiagError, ArithmeticError):
    """The loss, the gradient or a Hessian-vector product holds NaN or infinity."""


class ShapeError(GeodiagError, ValueError):
    """Blocks (a start, a step, a plugin's answer) do not have the parameters' names and shapes."""


class MatrixError(GeodiagError, ValueError):
    """A matrix given as the Hessian is not square and symmetric."""


class NormError(GeodiagError, ValueError):
    """A norm cannot be built, does not apply to these parameters, or breaks its contract."""


class EngineError(GeodiagError, RuntimeError):
    """The framework could not compute the derivative in the way asked for."""


class DistributedError(GeodiagError, RuntimeError):
    """Ranks that measure together: one met an error, asks something else, or does not answer."""


class StaleOracle(GeodiagError, RuntimeError):
    """The parameters changed after the oracle was frozen at them."""


class MissingDependency(GeodiagError, ImportError):
    """An optional package that this feature needs is not installed."""


class PluginError(GeodiagError, RuntimeError):
    """Two plugins clash, or one answers a hook with something unusable."""


class PluginWarning(UserWarning):
    """A plugin could not be loaded; geodiag goes on without it."""
