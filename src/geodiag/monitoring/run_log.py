"""Where the records of a run are written. A sink that fails costs one warning, never the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from geodiag.errors import one_line, shown
from geodiag.monitoring.warn_once import WarnOnce
from geodiag.oracles import Problem
from geodiag.records import Record
from geodiag.records.header import Header
from geodiag.sinks import Sink


class RunLog:
    """The sinks of a run.

    Args:
        sinks: which it closes.
        warn: of failures.
    """

    def __init__(self, sinks: Sequence[Sink], warn: WarnOnce) -> None:
        self._sinks, self._warn = sinks, warn
        self._began, self._process = False, os.getpid()

    def write(self, record: Record, header: Callable[[], Header]) -> None:
        """Write a record, after the header if it is the first one."""
        began_now, self._began = not self._began, True
        for sink in self._sinks:
            try:
                if began_now:
                    sink.start(header())
                sink.write(record)
            except Exception as e:
                self._warn(id(sink), f"{shown(sink)} failed at step {record.step}: {one_line(e)}")

    def close(self) -> None:
        """Close the sinks; a forked child leaves its parent's alone."""
        with ExitStack() as each:  # also where Ctrl-C ends one of them
            for sink in reversed(self._sinks if os.getpid() == self._process else []):
                each.callback(try_to_close, sink, shown(sink), self._warn)


def try_to_close(opened: Sink | Problem, name: str, warn: WarnOnce) -> None:
    """Close it; a failure is a warning."""
    try:
        opened.close()
    except Exception as e:
        warn(id(opened), f"{name} failed to close: {one_line(e)}")
