"""Forks ranks: imports torch once, and runs checks on fresh ranks for as long as it is asked to.

A request is one line of JSON on stdin, the answer one on stdout. Each rank is a fork that joins a
process group, calls one function with its rank, and ends. Whatever hangs is killed.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests import perturbation

# What checks import, and what torch imports for them; making an optimizer imports Dynamo.
LOADED = ("geodiag_torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor")
LOADED += ("array_api_compat.numpy", "pytest", "scipy.optimize")
LATE = 5.0  # seconds that a rank has to show where it hangs, before it is killed


def backend() -> str:
    """NCCL where every rank has a GPU of its own."""
    return "nccl" if torch.cuda.device_count() >= 2 else "gloo"


def rank_main(rank: int, request: dict[str, Any], folder: Path) -> int:
    """One rank, in its fork: 0 if the check passed."""
    with open(folder / f"{rank}.out", "w", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    faulthandler.dump_traceback_later(request["limit"], exit=True, file=sys.stderr)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(request["size"]))
    try:
        if backend() == "nccl":
            torch.cuda.set_device(rank)
            os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
        dist.init_process_group(
            backend(),
            store=dist.FileStore(str(folder / "store"), request["size"]),
            rank=rank,
            world_size=request["size"],
            timeout=timedelta(seconds=request["timeout"]),
        )
        module, name = request["check"].split(":")
        getattr(importlib.import_module(module), name)(rank, **request["arguments"])
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Exit codes (negative: the signal) and output of every rank."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        waiting: dict[int, int] = {}
        for rank in range(request["size"]):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = rank_main(rank, request, folder)
                finally:
                    os._exit(code)
            waiting[pid] = rank
        codes: dict[int, int] = {}
        end = time.monotonic() + request["limit"] + LATE
        while waiting:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                codes[waiting.pop(pid)] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                for hanging in waiting:
                    os.kill(hanging, signal.SIGKILL)
            else:
                time.sleep(0.01)
        outputs = [(folder / f"{rank}.out").read_text() for rank in sorted(codes)]
        return {"codes": [codes[rank] for rank in sorted(codes)], "outputs": outputs}


def main() -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints does not print into the answers
    for name in LOADED:
        importlib.import_module(name)
    perturbation.install_as_parent()
    gc.freeze()  # what was imported is no garbage in any rank
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
