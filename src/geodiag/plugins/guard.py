"""What a plugin raises names the plugin, and ends neither the process nor another plugin's work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from geodiag.errors import PluginError, one_line

OWN = ("geodiag", "torch", "jax")  # what their hooks raise comes from the user's arguments


@dataclass
class Blaming:
    """Turns whatever is raised in its block, also SystemExit, into a PluginError.

    Ctrl-C passes, the classes ``passing``, and what geodiag's own hooks raise. (A generator as the
    context manager would let a StopIteration through.)
    """

    what: str
    owner: str
    passing: tuple[type[BaseException], ...] = ()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, e: BaseException | None, trace: object) -> None:
        if e is None or self.owner in OWN or isinstance(e, (KeyboardInterrupt, *self.passing)):
            return
        raise PluginError(self.what, got=one_line(e), do="repair it, or uninstall it") from e


class BrokenPlugin(Exception):
    """The import of a plugin raised something; its text says what."""


def imported(ep: Any) -> Any:
    """The plugin of an entry point. Ctrl-C and a PluginError pass.

    Raises:
        BrokenPlugin: whatever else was raised, also a KeyboardInterrupt of the plugin's own.
    """
    with _interrupts() as seen:
        try:
            return ep.load()
        except PluginError:
            raise
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt) and seen:
                raise
            raise BrokenPlugin(one_line(e)) from e


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The SIGINTs that arrive during the block. They are handled as before."""
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield seen  # none raises a KeyboardInterrupt here
        return

    def noting(number: int, frame: Any) -> Any:
        seen.append(number)
        return before(number, frame)

    signal.signal(signal.SIGINT, noting)
    try:
        yield seen
    finally:
        if signal.getsignal(signal.SIGINT) is noting:
            signal.signal(signal.SIGINT, before)
