"""Ctrl-C while a model is lent: it waits where an exception would leave things half exchanged.

A signal's handler may raise between any two instructions, and so inside of a ``finally``, or of
a context manager of torch that is just giving a module its parameters back. What exchanges and
gives back is therefore run to its end; the run in between is interrupted at once, as ever.
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

    Those that come while ``around`` is at work are handled when it is through with it. Only the
    main thread handles signals: in others there is nothing to do.
    """
    if threading.current_thread() is not threading.main_thread():
        return around(run)
    waiting = _Waiting()
    try:
        waiting.hold()
        return around(lambda: waiting.released(run))
    finally:
        waiting.release()


class _Waiting:
    """A handler that takes note of signals, for those in whose place it stands."""

    def __init__(self) -> None:
        found = {number: signal.getsignal(number) for number in SIGNALS}
        # Others are the system's own (default, ignored), which raise nothing.
        self._handlers: dict[int, Any] = {n: h for n, h in found.items() if callable(h)}
        self._seen: dict[int, Any] = {}
        self._through = False  # whether they get theirs at once

    def __call__(self, number: int, frame: Any) -> None:
        if self._through:
            self._handlers[number](number, frame)
        else:
            self._seen[number] = frame

    def hold(self) -> None:
        """From here on nothing is raised; what came before still is."""
        for number in self._handlers:
            signal.signal(number, self)

    def released(self, run: Callable[[], T]) -> T:
        """``run()``, which signals interrupt."""
        try:
            self._through = True
            self._deliver()
            return run()
        finally:
            self._through = False

    def release(self) -> None:
        """Put the handlers back, and let them have what came in the meantime."""
        try:
            self._put_back()
        except BaseException:  # of the first of them, with others still to be put back
            self._put_back()
            raise
        finally:
            self._through = True  # should somebody in the run have kept this one to put it back
        self._deliver()

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is self:  # else the run has set another
                signal.signal(number, handler)

    def _deliver(self) -> None:
        while self._seen:
            number, frame = self._seen.popitem()
            self._handlers[number](number, frame)
