"""Sinks that may be slow: a thread of their own sends the records, so that no step waits for it."""

from __future__ import annotations

import atexit
import os
import re
import threading
import warnings
from abc import abstractmethod
from collections import deque

from geodiag.errors import SinkError, one_line
from geodiag.records import Header, Record
from geodiag.sinks.base import Sink

QUEUE = 1000  # records that may wait
PATIENCE = 10.0  # seconds that close() waits
_IN_URL = re.compile(r"(?<=://)[^/\s]*@")  # a name and a password


class Background(Sink):
    """Hands each record to a thread, which calls :meth:`send` in their order.

    :meth:`write` returns at once. If 1,000 records wait, another one is dropped. What :meth:`send`
    raises is raised by the next :meth:`write`. :meth:`close`, and the end of the interpreter, wait
    for at most 10 seconds; a warning then counts the records that were dropped. Only the process
    that created the sink may write to it: a forked child cannot share a tracker's connection.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._waiting: deque[Record | Header] = deque()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error = ""  # of the thread, to be raised
        self._dropped, self._why = 0, ""
        self._busy = self._closed = False

    @abstractmethod
    def send(self, record: Record) -> None:
        """Send one record; may wait. Called in the thread."""

    def describe(self, header: Header) -> None:
        """Send what is known of the run, before its records; by default nothing. May wait."""
        return None

    def finish(self) -> None:
        """Called in the thread after the last record; may wait."""
        return None

    def start(self, header: Header) -> None:
        if os.getpid() == self._process and not self._closed:
            with self._change:
                self._waiting.append(header)

    def write(self, record: Record) -> None:
        if os.getpid() != self._process:
            do = "create the sink in the process that writes to it"
            raise SinkError(f"{self!r} belongs to another process", do=do)
        with self._change:
            if self._closed:
                raise SinkError(f"{self!r} is closed")
            error, self._error = self._error, ""
            full = len(self._waiting) >= QUEUE
            if full:
                self._drop(1, f"{QUEUE} records were waiting to be sent")
            else:
                self._waiting.append(record)
                self._start()
                self._change.notify_all()
        if error:
            raise SinkError("an earlier record could not be sent", got=error)
        if full:
            raise SinkError(f"{QUEUE} records wait to be sent, so this one is dropped")

    def flush(self, timeout: float = PATIENCE) -> bool:
        """Wait until every record is sent, or ``timeout`` seconds; returns whether they are."""
        with self._change:
            return self._change.wait_for(lambda: not (self._waiting or self._busy), timeout)

    def close(self) -> None:
        if self._closed or os.getpid() != self._process:
            return
        with self._change:
            self._closed = True
            try:
                self._start()
            except RuntimeError:  # at the end of the interpreter, where there is nothing to send
                return
            self._change.notify_all()
        assert self._thread is not None
        self._thread.join(PATIENCE)
        atexit.unregister(self.close)
        with self._change:
            if self._thread.is_alive():
                left = len(self._waiting) + self._busy
                self._waiting.clear()
                self._drop(left, f"not sent within {PATIENCE:g} s")
            if self._why:
                text = f"{self!r} dropped {self._dropped} records, at last because: {self._why}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _start(self) -> None:
        if self._thread is None:
            name = f"geodiag {type(self).__name__}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._thread = thread
            atexit.register(self.close)

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    break
                record, self._busy = self._waiting.popleft(), True
            error = ""
            try:
                if isinstance(record, Header):
                    self.describe(record)
                else:
                    self.send(record)
            except BaseException as e:  # a thread has nobody to raise it to
                error = redacted(one_line(e))
            with self._change:
                self._busy = False
                if error:
                    self._error = error
                    self._drop(int(isinstance(record, Record)), error)
                self._change.notify_all()
        try:
            self.finish()
        except BaseException as e:
            with self._change:
                self._drop(0, redacted(one_line(e)))

    def _drop(self, count: int, why: str) -> None:
        self._dropped, self._why = self._dropped + count, why


def redacted(text: str) -> str:
    """The text without the names and passwords in its URLs.

    >>> redacted("no answer from https://me:secret@host/api")
    'no answer from https://***@host/api'
    """
    return _IN_URL.sub("***@", text)
