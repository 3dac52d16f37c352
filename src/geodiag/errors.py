"""Every error that geodiag raises: what was wrong, what was passed, what to do.

All derive from :class:`GeodiagError`, so one ``except`` catches them all.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

LONGEST = 300  # characters of a value that an error shows
LONGEST_TEXT = 1000  # of an exception's text, in a note or a warning
# Codes that control a terminal or the direction of text, and what XML or UTF-8 does not have. Tabs
# and line feeds remain.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str) -> str:
    r"""The text with characters that a terminal, XML or UTF-8 cannot take as escapes.

    >>> printable("\x1b[2J")
    '\\x1b[2J'
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def cut(text: str, length: int = LONGEST) -> str:
    """The text, cut to a length."""
    return text if len(text) <= length else text[:length] + "…"


def shown(x: Any) -> str:
    """``repr(x)`` for an error's text, cut to ``LONGEST``; the type's name if ``repr`` fails."""
    try:
        text = repr(x)
    except Exception:  # lists nested too deeply, or an error of the object itself
        return f"an object of type {type(x).__name__}"
    return printable(cut(text))


def first_line(e: BaseException) -> str:
    """The first line of an exception's text, cut, or its type's name where there is none."""
    lines = _text(e).strip().splitlines()
    return cut(lines[0]) if lines else type(e).__name__


def one_line(e: BaseException) -> str:
    """The type and the text of an exception in one line, cut; the type alone if it has no text."""
    text = " ".join(_text(e).split())
    return printable(f"{type(e).__name__}: {cut(text, LONGEST_TEXT)}").removesuffix(": ")


def _text(e: BaseException) -> str:
    """Its text; "" where ``str`` fails."""
    try:
        return str(e)
    except Exception:
        return ""


class GeodiagError(Exception):
    """Base of all geodiag errors.

    Args:
        what: what was wrong.
        got: what was passed or met, if that helps.
        do: what to do about it, if there is something.

    Attributes:
        what: the first argument; ``got`` and ``do`` are attributes too.

    Examples:
        >>> from geodiag.errors import ArgumentError
        >>> raise ArgumentError("lr= must be positive", got=-0.1, do="pass a number above 0")
        Traceback (most recent call last):
        geodiag.errors.ArgumentError: lr= must be positive. Got: -0.1. Do: pass a number above 0.
    """

    def __init__(self, what: str, *, got: Any = None, do: str | None = None) -> None:
        self.what, self.got, self.do = what, got, do
        parts = {"": what, "Got: ": got, "Do: ": do}
        super().__init__(" ".join(p + _sentence(x) for p, x in parts.items() if x is not None))


def _sentence(x: Any) -> str:
    """The text with one full stop at its end, or with the mark that it ends in."""
    text = printable(str(x)).rstrip()
    if text.endswith(("!", "?", "…", "...")):
        return text
    return text.rstrip(". ") + "."


class ArgumentError(GeodiagError, ValueError):
    """An argument has a value that cannot be used (``lr <= 0``, a zero step, an unknown option)."""


class CheckpointError(GeodiagError, ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


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


def not_finite(what: str, got: str = "NaN or infinity") -> NonFiniteError:
    """The error for a loss or a gradient that is not finite."""
    do = "check the parameters and the data; the training may have diverged"
    return NonFiniteError(f"{what} is not finite", got=got, do=do)


def product_not_finite(got: str = "NaN or infinity") -> NonFiniteError:
    """The error for a Hessian-vector product that is not finite, where loss and gradient are."""
    return NonFiniteError(
        "a Hessian-vector product is not finite, though loss and gradient are",
        got=got,
        do='where a norm, a root or a power at zero makes it so, pass engine="finite-difference", '
        "in float32 or float64; else look for what overflows in the second derivative",
    )


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


class SinkError(GeodiagError, RuntimeError):
    """A sink did not keep a record."""


class PluginError(GeodiagError, RuntimeError):
    """Two plugins clash, or one answers a hook with something unusable."""


class PluginWarning(UserWarning):
    """A plugin could not be loaded; geodiag goes on without it."""


def import_optional(module: str, what: str, do: str) -> Any:
    """Import a module of an optional package.

    Raises:
        MissingDependency: it is not installed; ``what`` needs it, and ``do`` installs it.
    """
    try:
        return import_module(module)
    except ImportError as e:
        raise MissingDependency(what, got=str(e), do=do) from e
