"""One check for each extra, with the answer in closed form; also a script: ``checks.py torch``.

Run by its path, it needs geodiag, what the extra installs, and nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import geodiag
from geodiag.records import Record
from geodiag.report.watch import run as watch
from geodiag.sinks import MLflow, TensorBoard, WandB

RECORDS = [Record(step, loss=1 / (1 + step), sharpness=2.0, ratio=0.5) for step in range(3)]
LR = 0.25
# The loss ½ mean((x @ w)²) over two examples: its Hessian is xᵀx/2 = diag(4.5, 0.5).
X = np.diag([3.0, 1.0]).astype(np.float32)


def core(folder: Path) -> None:
    """The trace of a diagonal matrix in ℓ∞, its largest entry in ℓ2; a log; the command."""
    matrix = np.diag([3.0, 1.0])
    near(geodiag.sharpness(matrix, "linf"), 4.0)
    near(geodiag.sharpness(matrix, "l2"), 3.0)
    near(geodiag.sharpness(np.eye(4), "spectral", shapes={"W": (2, 2)}), 2.0)
    with geodiag.Monitor(matrix, lr=LR, log=folder / "run.jsonl") as monitor:
        monitor.observe(0, {"x": np.ones(2)}, {"x": np.ones(2) - LR * matrix @ np.ones(2)})
    near(geodiag.read_records(folder / "run.jsonl")[0].ratio, 3.0 * LR / 2)
    assert geodiag.__version__ == metadata.version("geodiag")
    command = [sys.executable, "-m", "geodiag", "norms"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def torch(folder: Path) -> None:
    """λ_max and the ratio of gradient descent."""
    import torch

    import geodiag_torch

    model, x = torch.nn.Linear(2, 1, bias=False), torch.from_numpy(X)
    data, criterion = (x, torch.zeros(2, 1)), torch.nn.MSELoss()  # twice the loss above
    near(geodiag.sharpness(model, "l2", criterion=criterion, data=data), 9.0, 1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR / 2)
    monitor = geodiag_torch.attach(optimizer, model, criterion=criterion, data=data, every=1)
    criterion(model(x), data[1]).backward()
    optimizer.step()
    near(monitor.records[0].ratio, 4.5 * LR / 2, 1e-4)


def jax(folder: Path) -> None:
    """The same in JAX, with optax."""
    import jax
    import optax

    import geodiag_jax

    def loss(params: Any, x: Any) -> Any:
        return ((x @ params["w"]) ** 2).mean() / 2

    w = {"w": jax.numpy.ones(2)}
    near(geodiag.sharpness(loss, "l2", params=w, data=(X,)), 4.5, 1e-4)
    near(geodiag.sharpness(loss, "linf", params=w, data=(X,)), 5.0, 1e-4)
    optimizer = optax.sgd(LR)
    state, data = optimizer.init(w), (jax.numpy.asarray(X),)
    monitor = geodiag_jax.Monitor(loss, "l2", data=data, lr=LR, every=1)
    updates, state = optimizer.update(jax.grad(loss)(w, *data), state)
    monitor.observe(0, w, optax.apply_updates(w, updates))
    near(monitor.records[0].ratio, 4.5 * LR / 2, 1e-4)


def plot(folder: Path) -> None:
    """A figure of each kind."""
    for suffix in ("png", "svg", "pdf"):
        geodiag.plot(RECORDS, folder / f"run.{suffix}", title="a run")
        assert (folder / f"run.{suffix}").stat().st_size > 1000


def page(folder: Path) -> None:
    """An interactive page."""
    geodiag.plot(RECORDS, folder / "run.html")
    assert "plotly-graph-div" in (folder / "run.html").read_text("utf-8")


def watching(folder: Path) -> None:
    """The live table, once."""
    log(folder / "run.jsonl")
    assert watch(folder / "run.jsonl", once=True) == 0


def progress(folder: Path) -> None:
    """A bar of tqdm."""
    import tqdm

    assert tqdm.tqdm
    near(geodiag.sharpness(np.diag([3.0, 1.0]), "linf", progress=True), 4.0)


def sinks(folder: Path) -> None:
    """Event files; the other trackers are imported."""
    sink = TensorBoard(folder)
    sink.write(RECORDS[0])
    sink.close()
    assert list(folder.glob("events.out.tfevents.*"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
        import wandb
    assert mlflow.MlflowClient
    assert wandb.init
    assert issubclass(MLflow, geodiag.sinks.Sink)
    assert issubclass(WandB, geodiag.sinks.Sink)


def demo(folder: Path) -> None:
    """The demo's data."""
    from sklearn import datasets

    assert datasets.load_digits().data.shape == (1797, 64)


CHECKS = {
    "": core,
    "torch": torch,
    "jax": jax,
    "plot": plot,
    "html": page,
    "watch": watching,
    "progress": progress,
    "sinks": sinks,
    "demo": demo,
}


def log(path: Path) -> None:
    """A log of the records."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(geodiag.records.to_json(record) + "\n" for record in RECORDS)


def near(found: Any, expected: float, rtol: float = 1e-8) -> None:
    """Equal but for rounding; S of a float32 model to the estimator's own 1e-4."""
    assert abs(float(found) - expected) <= rtol * expected, (float(found), expected)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        CHECKS[sys.argv[1] if len(sys.argv) > 1 else ""](Path(scratch))
    # What was imported, for the table.
    names = ("numpy", "torch", "jax", "matplotlib", "rich", "tqdm")
    print(*(f"{n} {sys.modules[n].__version__}" for n in names
            if hasattr(sys.modules.get(n), "__version__")), sep=", ")  # fmt: skip
