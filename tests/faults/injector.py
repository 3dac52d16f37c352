"""Counts the calls that a measurement makes, and raises at a chosen one.

A *site* is what is called and from which line of geodiag; a *call* is one of the times it is
reached. A first run records the calls; each replay raises at one of them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import Any

from geodiag.norms import Norm
from geodiag.oracles import Oracle
from geodiag.sinks import Sink

NORM = ("value", "lmo", "lmos", "dual", "bind", "envelope", "metric", "inverse_metric")
ORACLE = ("hvp", "hvps", "loss", "gradient", "loss_at", "gradient_at")
SINK = ("write", "close")
ERRORS = (RuntimeError, KeyboardInterrupt, MemoryError)
# What every question passes through says nothing about where it comes from.
ON_THE_WAY = {"problem.py", "evaluation.py", "forward.py", "rng.py", "interrupts.py",
              "kept_graph.py", "objective.py", "wrappers.py"}  # fmt: skip


class Injected:
    """Mixed into what is raised, so that nothing else is taken for it. No Exception itself: with it
    Ctrl-C would be one."""


class Injector:
    """Passive until :meth:`record` or :meth:`inject` runs something."""

    def __init__(self, ignored: str | None = None) -> None:
        """``ignored``: a file of geodiag whose own calls do not count."""
        self.calls: list[str] = []
        self._ignored = ignored
        # One attribute further away: a JAX loss is traced anew when a number that it reads changes.
        self._now = SimpleNamespace(fatal=-1, error=RuntimeError, active=False)
        self.raised = 0  # injections in all
        self._lock = threading.Lock()  # so that a measurement does not give the calls back

    def tick(self, what: str) -> None:
        """One call of ``what``: the place where the fault comes."""
        caller = _caller(self._ignored) if self._now.active else None
        if caller is None:
            return
        self.calls.append(f"{what} < {caller}")
        if len(self.calls) - 1 == self._now.fatal:
            self.raised += 1
            raise fault(self._now.error)

    def record(self, run: Callable[[], Any]) -> tuple[list[str], Any]:
        """The calls of ``run()``, and its answer."""
        answer = self._run(run, -1, RuntimeError)
        return list(self.calls), answer

    def inject(
        self, run: Callable[[], Any], at: int, error: type[BaseException], site: str | None = None
    ) -> tuple[Any, BaseException | None]:
        """``run()`` with ``error`` at call ``at``: its answer, or what it raised.

        ``site``: what is called there, if ``run`` makes the same calls as when they were recorded.
        """
        try:
            answer, raised = self._run(run, at, error), None
        except BaseException as e:
            answer, raised = None, e
        assert site is None or self.calls[at : at + 1] == [site], (site, raised)
        return answer, raised

    def _run(self, run: Callable[[], Any], at: int, error: type[BaseException]) -> Any:
        self.calls = []
        vars(self._now).update(fatal=at, error=error, active=True)
        try:
            return run()
        finally:
            self._now.active = False

    @contextmanager
    def everywhere(self, *oracles: type[Oracle]) -> Iterator[None]:
        """Every norm, every sink and these oracles, with their own bases, report their calls."""
        classes = [(c, NORM) for c in below(Norm)] + [(c, SINK) for c in below(Sink)]
        bases = {c for oracle in oracles for c in oracle.__mro__ if issubclass(c, Oracle)}
        classes += [(c, ORACLE) for c in bases - {Oracle}]
        own = [(c, name) for c, names in classes for name in names if name in vars(c)]
        before = [(c, name, vars(c)[name]) for c, name in own]
        try:
            for c, name, method in before:
                setattr(c, name, self.reporting(method, f"{c.__name__}.{name}"))
            yield
        finally:
            for c, name, method in before:
                setattr(c, name, method)

    def reporting(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        @wraps(function)
        def reported(*args: Any, **keywords: Any) -> Any:
            self.tick(what)
            return function(*args, **keywords)

        return reported


def fault(kind: type[BaseException]) -> BaseException:
    """An exception of this kind that is known to be ours."""
    return type("Injected", (Injected, kind), {})("injected")


def below(base: type) -> list[type]:
    """All subclasses of ``base`` that are known by now, itself first."""
    found = [base]
    for c in found:
        found += [s for s in c.__subclasses__() if s not in found]
    return found


def first_of_each(calls: list[str]) -> list[int]:
    """The first call of every site."""
    return [calls.index(site) for site in dict.fromkeys(calls)]


def thinned(calls: list[str], count: int) -> list[int]:
    """About ``count`` calls that are not the first of their site, evenly spread."""
    later = sorted(set(range(len(calls))) - set(first_of_each(calls)))
    return later[:: max(1, len(later) // count)] if count else []


def _caller(ignored: str | None) -> str | None:
    """The nearest line of geodiag that decides something; None for the user's own calls."""
    frame, nearest, deciding = sys._getframe(2), None, None
    while frame is not None:
        path = frame.f_code.co_filename
        if "/src/geodiag" in path:
            name = path.rpartition("/")[2]
            if name == ignored:
                return None
            nearest = nearest or f"{name}:{frame.f_lineno}"
            if deciding is None and name not in ON_THE_WAY:
                deciding = f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return deciding or nearest
