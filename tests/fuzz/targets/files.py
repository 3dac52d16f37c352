"""Files: logs, their pictures, CIFAR-10. What is read is bytes near those of a real log."""

from __future__ import annotations

import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import geodiag
from geodiag import records as format_of
from geodiag import sinks
from geodiag.experiments.reproduction.data import CIFAR_RECORD, cifar10
from geodiag.report.watch import Tail, view
from tests.fuzz.case import Case
from tests.fuzz.objects import NUMBERS, TEXTS
from tests.fuzz.values import mostly, wild

FOLDER = Path(tempfile.mkdtemp(prefix="geodiag-fuzz-"))
RUN = [
    geodiag.Record(0, 2.5, 0.1, 30.0, "LOWER", 31.0, 0.4, 12.0, 11.0, 20.0, 1.5, 9, 0.01, ""),
    geodiag.Record(
        10,
        1.5,
        0.1,
        math.inf,
        "EXACT",
        math.nan,
        -0.0,
        1e-320,
        1e308,
        -1.0,
        -1.5,
        10**20,
        0.0,
        'ü; ∞\n"q"',
    ),
    geodiag.Record(-3, note="no threshold: neither lr= nor update= was given"),
]
JSON = "".join(format_of.to_json(r) + "\n" for r in RUN).encode()
CSV = "".join(
    x + "\n" for x in (",".join(format_of.BUILT_IN), *map(format_of.to_csv, RUN))
).encode()
TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b"1e999", b"-1e999", b"9" * 400, b"0x10",
    b'"\\ud800"', b'"a"', b"[", b"]", b"{", b"}", b"[" * 3000, b'{"a":' * 3000, b"\x00",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n", b",", b'"', b"1_000",
    "\u2028\u0085".encode(), "٣".encode(), b'"step":1,', b'{"step":1,"step":2}', b"9" * 5000,
    b"\x1a", b"\x0c", b'""', b"x" * 200_000, b"\nstep,loss\n", b"\nstep,x,loss,note\n",
    b'"schema":9,', b'{"schema":2,"step":1,"loss":[]}\n',
)  # fmt: skip


@st.composite
def logs(draw: Any) -> bytes:
    """A real log with a few mutations, or bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(draw(st.sampled_from((JSON, CSV, JSON[:-1], CSV[:-1], b""))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        upto = min(len(data), at + draw(st.sampled_from((0, 1, 2, 30))))
        data[at:upto] = draw(st.sampled_from(TOKENS) | st.binary(max_size=3))
    return bytes(data)


def check_read(found: Any) -> None:
    """Records of the right types, whatever the bytes were."""
    for r in found:
        assert type(r) is geodiag.Record
        for name, quantity in format_of.BUILT_IN.items():
            assert type(getattr(r, name)) is quantity.kind, (name, r)
        assert {*map(type, r.extras.values())} <= {float, str}
        assert r.bound in format_of.BUILT_IN["bound"].choices
        again = format_of.from_json(format_of.to_json(r))
        assert repr(again) == repr(r)  # NaN is not equal to itself


def reading(case: Case) -> None:
    """read_records and the live view's reader, of near-logs."""
    draw = case.draw
    path = FOLDER / f"run{draw(st.sampled_from(('.jsonl', '.csv', '')))}"
    data = draw(logs())
    path.write_bytes(data)
    case.said.append(f"bytes {data[:200]!r}")
    found = case.call(
        "read_records", geodiag.read_records, draw(st.sampled_from((path, str(path))))
    )
    if isinstance(found, list):
        check_read(found)
        case.call("view", view, path, found)
    tail = Tail(path)
    case.call("Tail", tail.update)
    check_read(tail.records)
    if draw(st.integers(0, 4)) == 0:
        case.call("read_records", geodiag.read_records, draw(wild()))


def appending(case: Case) -> None:
    """The sinks on files of any bytes: what is appended is read back, and the bytes stay."""
    draw = case.draw
    suffix, kind = draw(st.sampled_from(((".jsonl", sinks.JSONL), (".csv", sinks.CSV))))
    path = FOLDER / f"appended{suffix}"
    data = draw(logs())
    path.write_bytes(data)
    case.said.append(f"bytes {data[:200]!r}")
    added = geodiag.Record(7, loss=0.5, note="appended", extras=draw(EXTRAS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a second header; lines that are left out
        sink = kind(path)
        sink.write(added)
        sink.write(added)
        sink.close()
        assert path.read_bytes().startswith(data)
        found = case.call("read_records", geodiag.read_records, path)
    for name, x in added.to_dict().items():
        assert all(repr(getattr(r, name)) == repr(x) for r in found[-2:]), (name, found)


EXTRAS = st.sampled_from(({}, {"noise": 0.5}, {"x": math.inf, "y": "text"}))


@st.composite
def runs(draw: Any) -> Any:
    """Records of any numbers."""
    numbers = st.sampled_from([x for x in NUMBERS if isinstance(x, float)])
    made = []
    for _ in range(draw(st.integers(1, 3))):
        fields = ("loss", "sharpness", "upper", "directional_smoothness", "threshold", "ratio")
        values = {name: draw(numbers) for name in fields}
        made.append(
            geodiag.Record(
                draw(st.sampled_from((0, 1, -5, 10**6, 2**53, 10**30))),
                bound=draw(st.sampled_from(format_of.BUILT_IN["bound"].choices)),
                note=draw(st.sampled_from(TEXTS)),
                **values,
            )
        )
    return made


def plotting(case: Case) -> None:
    """plot of records, paths, dicts of them, or anything, saved somewhere."""
    draw = case.draw
    path = FOLDER / "plotted.jsonl"
    path.write_bytes(draw(logs()))
    one = runs() | st.just(path)
    several = st.dictionaries(st.sampled_from(TEXTS), one | wild(), max_size=2)
    source = draw(mostly(one, several | st.lists(one, max_size=2) | wild(), 2))
    usable = (None, None, FOLDER / "p.png", FOLDER / "p.html", str(FOLDER / "q.svg"))
    odd = st.sampled_from((FOLDER, "/proc/no/p.png", "p.txt")) | wild()
    target = draw(mostly(st.sampled_from(usable), odd, 5))
    if isinstance(target, str) and "/" not in target and target.endswith((".png", ".html")):
        target = None
    figure = case.call("plot", geodiag.plot, source, target)
    assert not figure or len(figure.axes) == 3


def cifar(case: Case) -> None:
    """The reader of CIFAR-10's binary layout, on hostile bytes."""
    draw = case.draw
    folder = Path(tempfile.mkdtemp(dir=FOLDER))
    for k in range(draw(st.integers(0, 2))):
        size = draw(
            st.sampled_from(
                (0, 1, 5, CIFAR_RECORD - 1, CIFAR_RECORD, 3 * CIFAR_RECORD, CIFAR_RECORD + 1)
            )
        )
        file = folder / f"data_batch_{k + 1}.bin"
        kind = draw(st.sampled_from(("random", "zero", "full", "folder", "label")))
        if kind == "folder":
            file.mkdir()
        else:
            raw = np.random.default_rng(draw(st.integers(0, 9))).integers(
                0, 256, size, dtype=np.uint8
            )
            raw = {"zero": raw * 0, "full": raw * 0 + 255}.get(kind, raw)
            if kind == "label":
                raw[::CIFAR_RECORD] = 3
            file.write_bytes(raw.tobytes())
    answer = case.call("cifar10", cifar10, folder)
    if answer:
        x, y = answer
        assert np.isfinite(x).all()
        assert x.shape[1:] == (3, 8, 8)
        assert (y.sum(axis=1) == 1).all()


TARGETS = {
    "read_records": (reading, 2.0),
    "log files": (appending, 1.0),
    "plot": (plotting, 0.25),
    "CIFAR-10 reader": (cifar, 0.5),
}
