"""Signals while something of the user's is lent to a measurement: tensors, random states, counters.

A signal handler may run between any two instructions. It may raise, also inside of a ``finally``,
or of a context manager of torch that is just restoring a module's parameters: lending and giving
back are therefore run to their end first. It may also save the model: whatever is lent in between
is given back while a handler runs, and lent again afterwards.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what signal wraps, at a tenth of the time
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")
# Ctrl-C, a scheduler's requests to end or to save, a time limit, a worker of a loader that died.
NAMES = "SIGINT SIGTERM SIGALRM SIGUSR1 SIGUSR2 SIGHUP SIGCONT SIGCHLD"
SIGNALS = [getattr(signal, s) for s in NAMES.split() if hasattr(signal, s)]


class Lending(Protocol):
    """Something of the user's that is exchanged for the time of a run."""

    def lend(self) -> None:
        """Put in place what the run is to find."""

    def give_back(self, for_good: bool) -> None:
        """Put in place what the user had; not ``for_good``: to be lent again as it is now."""


_lent: list[Lending] = []  # by the main thread, which alone handles signals


class Lent(AbstractContextManager[None]):
    """Inside these are lent, but to signal handlers. To be used within :func:`uninterrupted`."""

    def __init__(self, *lendings: Lending) -> None:
        self._lendings = lendings
        self._begun: list[Lending] = []
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        try:
            for lending in self._lendings:
                self._begun.append(lending)
                lending.lend()
                if self._main:
                    _lent.append(lending)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        while self._begun:
            lending = self._begun.pop()
            if self._main and lending in _lent:
                _lent.remove(lending)
            try:
                lending.give_back(True)
            except BaseException:
                self.__exit__()  # the others
                raise


def uninterrupted(
    around: Callable[[Callable[[], T]], T], run: Callable[[], T], waits: bool = False
) -> T:
    """``around(run)``, where signals interrupt ``run`` alone.

    Those that arrive while ``around`` is at work are handled once it has finished; where the
    handler ``waits``, all but Ctrl-C also when ``run`` has. Only the main thread handles signals:
    in others there is nothing to do.
    """
    if threading.current_thread() is not threading.main_thread():
        return around(run)
    deferred = _DeferredSignals(waits)
    try:
        deferred.install()
        return around(lambda: deferred.delivering(run))
    finally:
        deferred.uninstall()


class _DeferredSignals:
    """A handler that records signals, in the place of those that would be called."""

    def __init__(self, waits: bool) -> None:
        found = {number: _signal.getsignal(number) for number in SIGNALS}
        # Others are the system's own (default, ignored), which run nothing.
        self._handlers: dict[int, Any] = {n: h for n, h in found.items() if callable(h)}
        self._pending: dict[int, Any] = {}
        self._delivers = False  # whether signals go to their own handlers at once
        self._delivering = False
        self._waiting = set(self._handlers) - {signal.SIGINT} if waits else set()

    def __call__(self, number: int, frame: Any) -> None:
        if self._delivers and number not in self._waiting:
            self._handle(number, frame)
        else:
            self._pending[number] = frame

    def install(self) -> None:
        """From here on nothing is raised; what came before still is."""
        for number in self._handlers:
            _signal.signal(number, self)

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
            self._waiting = set()
        self._deliver()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if _signal.getsignal(number) is self:  # else the run has set another
                _signal.signal(number, handler)

    def _deliver(self) -> None:
        if self._delivering:  # by a handler that was called here
            return
        self._delivering = True
        try:
            # A copy, since signals go on arriving.
            while ready := [n for n in [*self._pending] if n not in self._waiting]:
                self._handle(ready[0], self._pending.pop(ready[0]))
        finally:
            self._delivering = False

    def _handle(self, number: int, frame: Any) -> None:
        """Call the handler, with everything given back to the user meanwhile."""
        handler, given = self._handlers[number], _lent[:]
        if not given:
            handler(number, frame)
            return
        self._delivers = False  # others wait for this exchange
        _lent.clear()
        # Modes of the pass see neither the exchange nor what the handler computes.
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            self._handle_given(given, handler, number, frame)
        self._deliver()

    def _handle_given(self, given: list[Lending], handler: Any, number: int, frame: Any) -> None:
        try:
            for lending in reversed(given):
                lending.give_back(False)
            self._delivers = True
            handler(number, frame)
        finally:
            self._delivers = False
            for lending in given:
                lending.lend()
            _lent[:] = given
            self._delivers = True
