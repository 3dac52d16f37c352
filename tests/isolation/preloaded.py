"""Interpreters that import modules once, and fork for each piece of code that they are given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.isolation.environment import variables

# Each line of its input is a JSON list of a folder and code, each of its output an exit status.
# The fork leaves the loop, so that it ends as an interpreter does. What was imported is frozen: to
# look through it for garbage at the end takes a fork longer than most code does.
FORKS = """
def serve():
    import gc, importlib, json, os, signal, sys
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()
    while line := sys.stdin.readline():
        folder, code = json.loads(line)
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        signal.alarm(900)
        sys.argv = ["-c"]
        os.chdir(folder)
        for stream, name in (1, ".stdout"), (2, ".stderr"):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), stream)
        return code
    sys.exit()

code = serve()
del serve
exec(compile(globals().pop("code"), "<string>", "exec"))
"""


class Preloaded:
    """Runs code as a fresh interpreter would, but for the ``modules`` that it has imported."""

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", FORKS, *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables(),
        )  # fmt: skip

    def run(self, code: str, folder: Path) -> str:
        """What ``code`` printed, run in ``folder``; it must end without an error."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([str(folder), code]), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        said = (folder / ".stderr").read_text("utf-8")
        assert status == 0, said
        assert "ResourceWarning" not in said, said
        return (folder / ".stdout").read_text("utf-8")

    def close(self) -> None:
        self._process.communicate()
