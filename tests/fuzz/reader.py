"""``python -m tests.fuzz.reader``: the readers of files and of states under atheris.

atheris is no part of ``make test``; ``make fuzz`` installs it. Each input's first
byte chooses a reader, the rest are the bytes that it reads:

    0  read_records of a .jsonl        3  a Monitor's state from JSON
    1  read_records of a .csv          4  start= of a measurement from JSON
    2  the tail of ``geodiag watch``   5  CIFAR-10's binary layout

An exception that is no GeodiagError, a record of wrong types and an input that takes more than ten
seconds end the run, with the input in a file. ``plot`` draws what read_records returned, which is
fuzzed by values elsewhere: a picture takes a thousand times as long as a file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    atheris = None

# Only what is first imported in here is instrumented.
guided = atheris is not None and __name__ == "__main__"
with atheris.instrument_imports(include=["geodiag"]) if guided else contextlib.nullcontext():
    import numpy as np

    import geodiag
    from geodiag.errors import GeodiagError
    from geodiag.experiments.reproduction.data import CIFAR_RECORD, cifar10
    from geodiag.report.watch import Tail
    from tests.fuzz.objects import Own
    from tests.fuzz.targets.files import CSV, JSON, TOKENS, check_read

FOLDER = Path(tempfile.mkdtemp(prefix="geodiag-reader-"))
H = np.diag([4.0, 1.0, 0.5])
MATRIX = geodiag.problem(H).at()
MONITOR = geodiag.Monitor(H, lr=0.1)


def records(suffix: str) -> Callable[[bytes], None]:
    """A reader of one kind of log."""
    path = FOLDER / f"run{suffix}"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        check_read(geodiag.read_records(path))

    return read


def tail(data: bytes) -> None:
    """The live view's reader, which meets the file in two parts."""
    path = FOLDER / "tail.jsonl"
    path.write_bytes(data[: len(data) // 2])
    found = Tail(path)
    found.update()
    path.write_bytes(data)
    found.update()
    check_read(found.records)


def parsed(data: bytes) -> Any:
    """What the bytes say in JSON, which a user has read before geodiag sees it."""
    try:
        return json.loads(data.decode("utf-8", errors="surrogatepass"))
    except (ValueError, RecursionError):
        raise Own from None


def monitor_state(data: bytes) -> None:
    """load_state_dict, and what is saved after it."""
    MONITOR.load_state_dict(parsed(data))
    json.dumps(MONITOR.state_dict())


def start(data: bytes) -> None:
    """start= of a measurement; its value is S whatever it starts from."""
    result = geodiag.sharpness(MATRIX, start=parsed(data))
    assert abs(result.value - 4.0) < 1e-6, result


def cifar(data: bytes) -> None:
    """CIFAR-10, the bytes repeated to whole records where there are enough of them."""
    folder = FOLDER / "cifar"
    folder.mkdir(exist_ok=True)
    repeated = data * (CIFAR_RECORD // len(data) + 1) if len(data) > 40 else data
    whole = repeated[:CIFAR_RECORD] if data[:1] < b"\x80" else repeated
    (folder / "data_batch_1.bin").write_bytes(whole)
    x, y = cifar10(folder)
    assert np.isfinite(x).all()
    assert (y.sum(axis=1) == 1).all()


READERS = (records(".jsonl"), records(".csv"), tail, monitor_state, start, cifar)


def test_one_input(data: bytes) -> None:
    """What atheris calls: a finding is an exception that goes out of here."""
    if not data:
        return
    with warnings.catch_warnings(), contextlib.suppress(GeodiagError, Own):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is left out: .*")  # documented
        READERS[data[0] % len(READERS)](data[1:])


def seeds() -> list[bytes]:
    """Real files and states, whole and cut, for each reader; and tokens in the middle of them."""
    run = geodiag.Monitor(H, lr=0.1)
    run.observe(0, {"x": np.ones(3)}, {"x": 0.9 * np.ones(3)})
    state = geodiag.sharpness(MATRIX).state
    plain = state | {"witness": {k: x.tolist() for k, x in state["witness"].items()}}
    bodies = [JSON, CSV, JSON[:-1], CSV[:-9], json.dumps(run.state_dict()).encode()]
    bodies += [json.dumps(plain).encode(), bytes(range(128)) * 25, b"\x00" * CIFAR_RECORD]
    bodies += [JSON[:60] + token + JSON[60:] for token in TOKENS]
    return [bytes([kind]) + body for kind in range(len(READERS)) for body in bodies]


def main(argv: Sequence[str] | None = None) -> None:
    """Run atheris for so many inputs; it ends the process, with 0 where nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.reader")
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--seconds", type=int, default=0, help="0: no limit")
    arguments = parser.parse_args(argv)
    if atheris is None:
        raise SystemExit("atheris is not installed: run make fuzz")
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(seeds()):
        (corpus / f"{i:04}").write_bytes(seed)
    options = [f"-runs={arguments.runs}", f"-max_total_time={arguments.seconds}"]
    options += ["-timeout=10", "-max_len=20000", f"-artifact_prefix={FOLDER}/", str(corpus)]
    sys.stdout = io.StringIO()
    atheris.Setup([sys.argv[0], *options], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
