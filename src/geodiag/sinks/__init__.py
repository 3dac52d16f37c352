"""Where records go: files, experiment trackers, or any function.

sink                  what it is
JSONL(path)           one JSON object a line; what ``log="run.jsonl"`` means
CSV(path)             one row a line; what ``log="run.csv"`` means
TensorBoard(folder)   event files
WandB(run)            Weights & Biases
MLflow(run_id)        MLflow tracking
any function          called with each Record

The trackers write from threads of their own: see :mod:`geodiag.sinks.background`. A sink of your
own has ``write(record)`` and ``close()``: subclass :class:`Sink`.
"""

from geodiag.sinks.base import Call, Sink, metrics
from geodiag.sinks.files import CSV, JSONL, Log, as_sinks
from geodiag.sinks.trackers import MLflow, TensorBoard
from geodiag.sinks.wandb_rows import WandB

__all__ = [
    "CSV",
    "JSONL",
    "Call",
    "Log",
    "MLflow",
    "Sink",
    "TensorBoard",
    "WandB",
    "as_sinks",
    "metrics",
]
