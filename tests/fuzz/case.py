"""One call of a public function, and what may come out of it: a GeodiagError, or a right answer."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from geodiag.errors import GeodiagError
from tests.fuzz.objects import Own


class Refused:
    """In place of an answer: the call ended in an error that it may end in."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __bool__(self) -> bool:
        return False


class Case:
    """Calls, in order, with a text of what was called, for the report of a finding."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.said: list[str] = []
        self.answered = 0  # calls that were not refused

    def call(self, what: str, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """The answer, or :class:`Refused`; any other exception is a finding."""
        shown = [show(a) for a in args] + [f"{k}={show(v)}" for k, v in keywords.items()]
        self.said.append(f"{what}({', '.join(shown)})")
        try:
            answer = function(*args, **keywords)
        except GeodiagError as e:
            str(e)  # an error that cannot be printed is a finding too
            return Refused(e)
        except Own as e:
            return Refused(e)
        self.answered += 1
        return answer

    def __str__(self) -> str:
        return "; ".join(self.said)


def show(x: Any) -> str:
    """``repr(x)`` in a few words, whatever ``x`` is."""
    try:
        text = " ".join(repr(x).split())
    except Exception as e:
        text = f"<{type(x).__name__}, whose repr raises {type(e).__name__}>"
    return text if len(text) <= 160 else text[:157] + "..."


@contextlib.contextmanager
def strict(*, allowed: str = "^$") -> Iterator[None]:
    """Warnings are errors, but for the documented one; what goes to the terminal is dropped."""
    quiet = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(quiet),
        contextlib.redirect_stdout(quiet),
    ):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=allowed, category=RuntimeWarning)
        # Of JAX, on its own account; its tests do the same.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="jax.*")
        yield
