"""``ranks``: runs a check on several ranks, forked from one process that has imported torch."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import geodiag

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
START = 300.0  # seconds for the first import of torch, on a busy machine
Launch = Callable[..., list[str]]


class Server:
    """The process that forks, started when the first check asks for it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            # The same geodiag as in this process.
            paths = [str(ROOT), str(Path(geodiag.__file__).parents[1])]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.distributed.server"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], START + request["limit"])
        if not ready:
            self.close()
            pytest.fail("the server of the ranks does not answer")
        return json.loads(process.stdout.readline())  # type: ignore[no-any-return]

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture
def ranks(server: Server) -> Launch:
    """``ranks(check, size=2, timeout=…, limit=…, codes=…, **arguments)`` -> what each printed.

    ``check(rank, **arguments)`` is called on ``size`` ranks, whose process group has the
    ``timeout``; after ``limit`` seconds all must have ended, with these exit ``codes`` (0 each).
    """

    def launch(
        check: Callable[..., None],
        size: int = 2,
        timeout: float = 60.0,
        limit: float = 300.0,
        codes: list[int] | None = None,
        **arguments: Any,
    ) -> list[str]:
        request = {
            "check": f"{check.__module__}:{check.__name__}",
            "size": size,
            "timeout": timeout,
            "limit": limit,
            "arguments": arguments,
        }
        answer = server.ask(request)
        shown = "\n".join(f"--- rank {i}\n{text}" for i, text in enumerate(answer["outputs"]))
        assert answer["codes"] == ([0] * size if codes is None else codes), shown
        return list(answer["outputs"])

    return launch
