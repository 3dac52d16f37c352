"""Other threads of Python, which may draw random numbers or use a model while one is measured."""

from __future__ import annotations

import threading

# Packages whose own threads do neither: progress bars, trackers, notebooks, debuggers, data that
# torch pins and what it compiles.
IDLE = {
    "debugpy", "geodiag", "IPython", "ipykernel", "mlflow", "tensorboard", "torch", "tqdm",
    "_pydevd_bundle", "wandb", "zmq",
}  # fmt: skip


def others() -> frozenset[int]:
    """The identifiers of the threads beside this one that may do either."""
    if threading.active_count() == 1:
        return frozenset()
    found = {t.ident for t in threading.enumerate() if not _is_idle(t)}
    return frozenset(i for i in found if i is not None) - {threading.get_ident()}


def _is_idle(thread: threading.Thread) -> bool:
    # While a plain thread runs, it holds the function that it was made with.
    runs = type(thread) if type(thread) is not threading.Thread else vars(thread).get("_target")
    module = str(getattr(runs, "__module__", ""))
    return module.partition(".")[0] in IDLE and module != "ipykernel.subshell"  # runs cells
