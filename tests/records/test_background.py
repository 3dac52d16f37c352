"""Trackers write from a thread of their own: nothing that a server does holds up a step."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings

import pytest

from geodiag.errors import SinkError
from geodiag.records import Record
from geodiag.sinks import MLflow, background
from geodiag.sinks.background import QUEUE, Background, redacted
from tests.monitored import pair, run


class Server(Background):
    """A sink whose server answers when the test says so."""

    def __init__(self, error=None):
        super().__init__()
        self.answers, self.asked, self.got, self.error = (
            threading.Event(),
            threading.Event(),
            [],
            error,
        )

    def send(self, record):
        self.asked.set()
        self.answers.wait(300)
        if self.error is not None:
            raise self.error
        self.got.append(record.step)

    def finish(self):
        self.got.append("finished")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(background, "PATIENCE", 0.2)


def test_no_write_waits_and_the_order_is_kept():
    sink = Server()
    for step in range(QUEUE):
        sink.write(Record(step))  # the server does not answer yet
    assert sink.got == []
    sink.answers.set()
    assert sink.flush(300)
    sink.close()
    sink.close()
    assert sink.got == [*range(QUEUE), "finished"]
    with pytest.raises(SinkError, match="is closed"):
        sink.write(Record(0))


def test_what_the_queue_cannot_hold_is_dropped_counted_and_said():
    sink = Server()
    sink.write(Record(0))
    assert sink.asked.wait(300)  # it is on its way, and no longer in the queue
    for step in range(1, QUEUE + 1):
        sink.write(Record(step))
    for step in range(3):
        with pytest.raises(SinkError, match=r"1000 records wait.*dropped"):
            sink.write(Record(-step))
    sink.answers.set()
    with pytest.warns(RuntimeWarning, match="dropped 3 records"):
        sink.close()
    assert sink.got == [*range(QUEUE + 1), "finished"]


def test_a_server_that_never_answers_holds_up_close_for_a_stated_time(impatient):
    sink = Server()
    for step in range(5):
        sink.write(Record(step))
    began = time.monotonic()
    with pytest.warns(RuntimeWarning, match="dropped 5 records.*not sent within 0.2 s"):
        sink.close()
    assert time.monotonic() - began < 60
    sink.answers.set()
    sink._thread.join(300)
    assert sink.got[0] == 0  # what was on its way, and no other, arrives
    assert set(sink.got[1:]) <= {"finished"}


def test_what_the_server_says_is_raised_by_the_next_write_without_passwords():
    said = "cannot reach http://me:p%40ss:w@rd@host:5000/api?x=1 and https://token@other"
    sink = Server(ConnectionError(said))
    sink.answers.set()
    sink.write(Record(0))
    sink.flush(300)
    with pytest.raises(SinkError, match="ConnectionError: cannot reach") as caught:
        sink.write(Record(1))
    for secret in ("p%40ss", "w@rd", "me:", "token"):
        assert secret not in str(caught.value)
    assert "host:5000/api?x=1" in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    with pytest.warns(RuntimeWarning, match="dropped 2 records.*ConnectionError") as warned:
        sink.close()
    assert "w@rd" not in str(warned[0].message)


def test_texts_without_passwords_stay():
    text = "mail me@host, see https://host/a@b and 10://"
    assert redacted(text) == text


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_nothing_that_is_raised_ends_the_thread(error):
    sink = Server(error)
    sink.answers.set()
    sink.write(Record(0))
    sink.flush(300)
    sink.error = None
    with pytest.raises(SinkError, match=type(error).__name__):
        sink.write(Record(1))
    with pytest.warns(RuntimeWarning, match="dropped 1 records"):
        sink.close()
    assert sink.got == [1, "finished"]


def test_in_a_training_the_steps_go_on_and_it_is_said_once():
    sink = Server(OSError("no route"))
    sink.answers.set()
    monitor, w = pair(log=sink)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(4):
            monitor.observe(step, w, {"x": 0.9 * w["x"]})
            sink.flush(300)
        monitor.close()
    said = [str(each.message) for each in caught]
    assert len([x for x in said if "no route" in x and "geodiag.Monitor: Server()" in x]) == 1
    assert len([x for x in said if "dropped 4 records" in x]) == 1
    assert len(said) == 2
    assert len(monitor.records) == 4


def test_a_monitor_closes_a_sink_that_never_answers(impatient):
    sink = Server()
    monitor, w = pair(log=sink)
    with pytest.warns(RuntimeWarning, match="dropped 3 records"):
        run(monitor, w)
    sink.answers.set()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside threads
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # the same of JAX, where it is loaded
def test_a_forked_child_sends_nothing_and_closes_nothing():
    sink = Server()
    sink.write(Record(0))
    child = os.fork()
    if child == 0:
        try:
            sink.write(Record(1))
        except SinkError as e:
            sink.close()
            os._exit(0 if "another process" in str(e) and sink.got == [] else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    sink.answers.set()
    sink.close()
    assert sink.got == [0, "finished"]


EXIT = """
import sys, time
from geodiag.records import Record
from geodiag.sinks import background
background.PATIENCE = 0.5 if sys.argv[1] == "never" else 300.0

class Slow(background.Background):
    def send(self, record):
        time.sleep(10**6 if sys.argv[1] == "never" else 0.01)
        print(record.step, flush=True)
    def finish(self):
        print("finished", flush=True)

sink = Slow()
for step in range(20 * (sys.argv[1] != "unused")):
    sink.write(Record(step))
"""


@pytest.mark.parametrize("how", ["never", "slow", "unused"])
def test_the_end_of_the_interpreter_waits_as_long(how):
    """For a sink that nobody closed."""
    done = subprocess.run(
        [sys.executable, "-c", EXIT, how], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0
    expected = [*map(str, range(20)), "finished"] if how == "slow" else []
    assert done.stdout.split() == expected
    assert ("dropped 20 records" in done.stderr) == (how == "never")


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")
def test_a_dead_mlflow_server_holds_up_nothing(monkeypatch, impatient):
    """Nothing listens at the port; MLflow tries again and again, for seconds."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://me:secret@127.0.0.1:9")
    try:
        sink = MLflow("0" * 32)
        sink.write(Record(0, loss=1.0))
        assert sink.flush(300)
        with pytest.raises(SinkError, match="could not be sent") as caught:
            sink.write(Record(1, loss=1.0))
        assert "127.0.0.1" in str(caught.value)
        assert "secret" not in str(caught.value)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
        for step in range(3):
            sink.write(Record(step, loss=1.0))
        with pytest.warns(RuntimeWarning, match="MLflow.* dropped 5 records") as warned:
            sink.close()
        assert "secret" not in str(warned[0].message)
    finally:
        mlflow.set_tracking_uri(before)
