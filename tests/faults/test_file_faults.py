"""Faults of log files: no acknowledged record is lost, and none is read that was half written.

A record is acknowledged when ``write`` has returned. What was not may be missing or there, as a
whole; the line that a crash cut short is reported by the reader.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import astuple
from pathlib import Path

import pytest

from geodiag.errors import ArgumentError
from geodiag.records import BUILT_IN, Record, read_records, to_csv, to_json
from geodiag.sinks import CSV, JSONL
from tests.monitored import pair, run

HEADER = ",".join(BUILT_IN)
FILES = pytest.mark.parametrize("kind", [JSONL, CSV])
LINE = {JSONL: to_json, CSV: to_csv}
A, B, C = (Record(n, loss=0.5, lr=0.1, num_hvps=3, seconds=2.0, note=f"no {n}") for n in range(3))
CUT = Record(3, loss=0.25, note="a longer note")
QUOTED = Record(3, note='of "two", or more')


def path_of(folder, kind):
    return folder / f"run.{kind.__name__.lower()}"


def read(path):
    """The records of a log that may hold lines cut short, each as what it is compared by."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return [key(r) for r in read_records(path)]


def key(record):
    return str(astuple(record))  # NaN equals NaN


class TestFullDisk:
    @FILES
    @pytest.mark.parametrize("cut", [CUT, QUOTED], ids=["plain", "quoted"])
    def test_wherever_a_line_is_cut_the_others_are_whole(self, kind, cut, tmp_path, monkeypatch):
        """By each number of bytes; the next line comes from another run, or after a new start."""
        write = os.write
        length = len(f"{LINE[kind](cut)}\n".encode())
        for written in range(length):
            path = path_of(tmp_path / str(written), kind)
            sink, other = kind(path), kind(path)
            sink.write(B)
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", lambda file, data, k=written: write(file, data[:k]))
                with pytest.raises(OSError, match=f"{written} of {length}"):
                    sink.write(cut)
            last = other if written % 2 else kind(path)
            last.write(C)
            sink.write(A)
            found = read(path)
            assert [r for r in found if r != key(cut)] == [key(B), key(C), key(A)]
            assert len(found) <= 4
            for each in {sink, other, last}:
                each.close()

    @FILES
    def test_a_limit_of_the_system(self, kind, tmp_path):
        """A process that may write no file above 3,000 bytes; where the limit is lifted, it goes
        on, in the same process and in the next."""
        pytest.importorskip("resource")
        path = path_of(tmp_path, kind)
        acknowledged = acks(child(LIMITED, path))
        assert 3 < len(acknowledged) < 60
        assert max(acknowledged) == 59  # written after the limit was lifted
        assert steps(path) >= set(acknowledged)
        again = kind(path)
        again.write(Record(99))
        again.close()
        assert steps(path) >= {*acknowledged, 99}
        text = path.read_text()
        assert text.count(HEADER) == (kind is CSV)
        assert text.endswith("\n")

    def test_the_training_goes_on_and_the_log_too(self, tmp_path, monkeypatch):
        """In a monitor: one warning; what was written before and after is there."""
        path, write, full = tmp_path / "run.jsonl", os.write, [False]

        def sometimes(file, data):
            if full[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, data)

        def every(step):
            full[0] = step in (1, 2)
            return True

        monkeypatch.setattr(os, "write", sometimes)
        monitor, w = pair(log=path, every=every)
        with pytest.warns(RuntimeWarning, match="No space left") as caught:
            records = run(monitor, w, steps=5)
        assert len(caught) == 1
        assert [r.step for r in records] == [0, 1, 2, 3, 4]
        assert [r.step for r in read_records(path)] == [0, 3, 4]


class TestPlaces:
    @FILES
    @pytest.mark.parametrize("what", ["file", "folder"])
    @pytest.mark.parametrize("fsync", [False, True])
    def test_what_is_deleted_is_created_again(self, kind, what, fsync, tmp_path):
        path = path_of(tmp_path / "runs", kind)
        sink = kind(path, fsync=fsync)
        sink.write(A)
        path.unlink() if what == "file" else shutil.rmtree(path.parent)
        sink.write(B)
        sink.write(C)
        sink.close()
        assert read(path) == [key(B), key(C)]
        assert path.read_text().count(HEADER) == (kind is CSV)

    def test_what_cannot_be_created_again_is_tried_each_time(self, tmp_path):
        path = tmp_path / "runs/run.jsonl"
        sink = JSONL(path)
        sink.write(A)
        shutil.rmtree(path.parent)
        path.parent.write_text("a file where the folder was")
        for _ in range(2):
            with pytest.raises(OSError, match="exists"):
                sink.write(B)
        path.parent.unlink()
        sink.write(C)
        sink.close()
        assert read(path) == [key(C)]

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
    def test_what_may_not_be_written_to_is_refused_at_once(self, code, tmp_path, monkeypatch):
        def refuse(*args):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(ArgumentError, match="cannot be opened"):
            pair(log=tmp_path / "run.jsonl")

    def test_a_header_cut_short_is_written_again(self, tmp_path):
        path = tmp_path / "run.csv"
        path.write_text(HEADER[:30])
        sink = CSV(path)
        sink.write(A)
        sink.close()
        assert read(path) == [key(A)]
        assert path.read_text().splitlines()[1] == HEADER


class TestProcesses:
    @FILES
    def test_two_write_500_records_each(self, kind, tmp_path):
        path = path_of(tmp_path, kind)
        both = [child(WRITER, path, name, "500") for name in "ab"]
        for each in both:
            assert len(acks(each)) == 500
        found = read_records(path)  # a torn line would warn, and warnings are errors here
        for name in "ab":
            own = [r for r in found if r.note.startswith(name)]
            assert [r.step for r in own] == list(range(500))
            assert {r.note for r in own} == {name * 200}
        assert len(found) == 1000

    @pytest.mark.filterwarnings("ignore:.*second header")
    def test_two_write_different_quantities(self, tmp_path):
        """The second adds a column, while the first goes on with the narrower rows that it knew."""
        path = tmp_path / "run.csv"
        first = child(EXTRA, path, "a", "400")
        first.stdout.readline()
        second = child(EXTRA, path, "b", "400")
        assert len(acks(first)) == 399
        assert len(acks(second)) == 400
        found = read_records(path)  # a row of an unknown width would warn
        for name in "ab":
            own = [r for r in found if r.note == name]
            assert [r.extras[name] for r in own] == list(range(400))
        assert len(found) == 800

    @pytest.mark.parametrize(
        "rounds", [3, pytest.param(20, marks=pytest.mark.slow)], ids=["few", "many"]
    )
    def test_killed_at_any_moment_and_resumed(self, rounds, tmp_path):
        """Each round two runs go on with the log of those before, and are killed while they write,
        one of which waits for the disk each time."""
        rng = random.Random(0)
        for kind in (JSONL, CSV)[: 1 + rounds // 10]:
            path, expected = path_of(tmp_path, kind), []
            for number in range(rounds):
                names = [f"{number}{x}" for x in "ab"]
                runs = [child(WRITER, path, names[0], "1000000000")]
                runs.append(child(WRITER, path, names[1], "1000000000", "fsync"))
                begun = [each.stdout.readline() for each in runs]
                more = [runs[0].stdout.readline() for _ in range(rng.randrange(60))]
                expected += [(names[0], int(line)) for line in more]
                for each in runs:
                    each.send_signal(signal.SIGKILL)
                for name, first, each in zip(names, begun, runs, strict=True):
                    expected += [(name, s) for s in [int(first), *acks(each, killed=True)]]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                records = read_records(path)
            assert {r.note[-200:] for r in records} == {"x" * 200}  # none is half written
            found = {(r.note[:-200], r.step) for r in records}
            assert found >= set(expected)
            assert len(expected) >= 2 * rounds


LIMITED = """
import resource, sys
from geodiag.records import Record
from geodiag.sinks import as_sinks
(sink,) = as_sinks(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
for step in range(60):
    if step == 50:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        sink.write(Record(step, note="x" * 100))
    except OSError:
        continue
    print(step, flush=True)
"""

WRITER = """
import sys
from pathlib import Path
from geodiag.records import Record
from geodiag.sinks import CSV, JSONL
path, name, count, *fsync = sys.argv[1:]
sink = {".csv": CSV, ".jsonl": JSONL}[Path(path).suffix](path, fsync=bool(fsync))
filler = name * (200 // len(name)) if len(name) == 1 else name + "x" * 200
for step in range(int(count)):
    sink.write(Record(step, loss=0.1, note=filler))
    print(step, flush=True)
"""

EXTRA = """
import sys, time, warnings
from geodiag.records import Record
from geodiag.sinks import CSV
path, name, count = sys.argv[1:]
warnings.simplefilter("ignore")
sink = CSV(path)
for step in range(int(count)):
    sink.write(Record(step, loss=0.1, note=name, extras={name: float(step)}))
    print(step, flush=True)
    time.sleep(0.001)  # both are at work at the same time
"""


def child(code, path, *arguments):
    """A process that prints the number of each record when it is acknowledged."""
    command = [sys.executable, "-c", code, str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def acks(process, killed=False):
    """The numbers that it printed; the last line may be cut short where it was killed."""
    with process.stdout:
        out = process.stdout.read()
    process.wait(timeout=300)
    assert process.returncode == (-signal.SIGKILL if killed else 0)
    *lines, rest = out.split("\n")
    assert killed or not rest
    return [int(line) for line in lines]


def steps(path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return {r.step for r in read_records(path)}
