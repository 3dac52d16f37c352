"""The peak of resident memory during a call; Linux only, elsewhere None."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KIB = 1024.0
T = TypeVar("T")


def peak(run: Callable[[], T]) -> tuple[T, float | None]:
    """``run()``, and by how many MiB it raised the resident memory at its highest.

    None where the system does not tell.
    """
    before = restart()
    answer = run()
    after = resident("VmHWM")
    return answer, None if before is None or after is None else after - before


def restart() -> float | None:
    """Begin the highest mark anew at what is resident now, and return that.

    What was freed before is handed back to the system first, so that it is not reused unseen.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        RESET.write_text("5", encoding="ascii")
    except OSError:
        return None
    return resident("VmRSS")


def resident(field: str) -> float | None:
    """``VmRSS`` (now) or ``VmHWM`` (at its highest) of this process, in MiB."""
    lines = STATUS.read_text(encoding="ascii").splitlines() if STATUS.exists() else []
    return next((float(x.split()[1]) / KIB for x in lines if x.startswith(field + ":")), None)
