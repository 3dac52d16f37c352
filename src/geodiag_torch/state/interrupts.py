"""Deferring signals (Ctrl-C) while tensors of a module are being replaced or restored.

A signal handler may raise between any two instructions, and so inside of a ``finally``, or of a
context manager of torch that is just restoring a module's parameters. Replacing and restoring are
therefore run to their end; the run in between is interrupted at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
# Those whose handlers raise, if any do: Ctrl-C, a scheduler's request to end, a time limit.
SIGNALS = [getattr(signal, s) for s in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, s)]


def uninterrupted(around: Callable[[Callable[[], T]], T], run: Callable[[], T]) -> T:
    """``around(run)``, where signals interrupt ``run`` alone.

    Those that arrive while ``around`` is at work are handled once it has finished. Only the main
    thread handles signals: in others there is nothing to do.
    """
    if threading.current_thread() is not threading.main_thread():
        return around(run)
    deferred = _DeferredSignals()
    try:
        deferred.install()
        return around(lambda: deferred.delivering(run))
    finally:
        deferred.uninstall()


class _DeferredSignals:
    """A handler that records signals, in the place of those that would raise."""

    def __init__(self) -> None:
        found = {number: signal.getsignal(number) for number in SIGNALS}
        # Others are the system's own (default, ignored), which raise nothing.
        self._handlers: dict[int, Any] = {n: h for n, h in found.items() if callable(h)}
        self._pending: dict[int, Any] = {}
        self._delivers = False  # whether signals go to their own handlers at once

    def __call__(self, number: int, frame: Any) -> None:
        if self._delivers:
            self._handlers[number](number, frame)
        else:
            self._pending[number] = frame

    def install(self) -> None:
        """From here on nothing is raised; what came before still is."""
        for number in self._handlers:
            signal.signal(number, self)

    def delivering(self, run: Callable[[], T]) -> T:
        """``run()``, which signals interrupt."""
        try:
            self._delivers = True
            self._deliver()
            return run()
        finally:
            self._delivers = False

    def uninstall(self) -> None:
        """Restore the handlers, and deliver what arrived in the meantime."""
        try:
            self._restore()
        except BaseException:  # from the first handler, with others still to be restored
            self._restore()
            raise
        finally:
            self._delivers = True  # should the run have kept this handler, to install it later
        self._deliver()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is self:  # else the run has set another
                signal.signal(number, handler)

    def _deliver(self) -> None:
        while self._pending:
            number, frame = self._pending.popitem()
            self._handlers[number](number, frame)
