"""``geodiag demo``: three optimizers reach the edge of stability on real data.

A tanh MLP learns scikit-learn's digits by full-batch gradient descent in the ℓ2, ℓ∞ and spectral
norms. In each, the sharpness in the optimizer's own norm rises (progressive sharpening) until it
meets 2/lr, and then stays near it; so does the directional smoothness of the steps. The runs are
cells of the reproduction, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from geodiag.errors import ArgumentError
from geodiag.experiments.reproduction import data, figures, results, runner
from geodiag.experiments.reproduction.cells import METHODS, Cell, Training, chosen
from geodiag.experiments.reproduction.frameworks import check_installed, make_trainer
from geodiag.experiments.reproduction.training import train
from geodiag.monitoring.run_header import versions
from geodiag.records import Header, new_run, to_json
from geodiag.records.header import command
from geodiag.records.jsonl import header_to_json

# By norm: a method of the reproduction, with a learning rate and a length that reach the edge.
RUNS = {
    "l2": ("gd", Training(0.2, 1500, 60)),
    "linf": ("linf-descent", Training(3e-4, 900, 60)),
    "spectral": ("spectral-gd", Training(0.0165, 900, 60)),
}
GAIN = 1.0  # of the first weights


def run(
    framework: str = "torch",
    norms: Sequence[str] | None = None,
    steps: int | None = None,
    out: Path = Path("geodiag-demo"),
    seed: int = 0,
) -> int:
    """Train, measure, and write ``demo.jsonl`` and ``demo.png`` to the folder ``out``.

    ``norms`` are some of "l2", "linf" and "spectral"; None: all. Without ``steps``, each run takes
    as many as reach the edge. Returns the exit status, 0.

    Raises:
        ArgumentError: an unknown framework or norm, or fewer than 10 steps.
        MissingDependency: the framework, scikit-learn, rich or matplotlib is not installed.
    """
    selected = chosen("norm", norms, RUNS)
    if steps is not None and steps < 10:
        raise ArgumentError("the demo needs at least 10 steps", got=steps)
    check_installed(framework, "the demo")
    task = data.task("mlp", None, seed, GAIN).astype(np.float32)
    # layer1_w, layer1_b, ...: random starts are drawn in name order, here layer by layer.
    task = replace(task, weights={f"layer{n[1]}_{n[0]}": w for n, w in task.weights.items()})
    out.mkdir(parents=True, exist_ok=True)
    runs = []
    with runner.bars() as progress, (out / "demo.jsonl").open("w", encoding="utf-8") as log:
        for method, training in (RUNS[norm] for norm in selected):
            t = replace(training, steps=steps or training.steps)
            cell = Cell(framework, method, "mlp", t.lr, t.steps, t.measurements, seed, task.digest)
            bar = progress.add_task(f"{METHODS[method].title:18}", total=cell.steps, now="")
            labels = {"method": METHODS[method].title, "norm": METHODS[method].norm}
            labels["framework"] = framework
            header: dict[str, Any] = {
                "label": labels["method"],
                "norm": labels["norm"],
                "optimizer": {"lr": t.lr},
            }
            header |= {
                "seed": seed,
                "model": "mlp",
                "versions": versions(),
                "command": command(),
            }
            run = new_run()
            log.write(header_to_json(Header(run, header)) + "\n")
            records = []
            for taken in train(cell, make_trainer(framework, "mlp", task)):
                record = replace(taken.record, extras=labels, run=run)
                log.write(to_json(record) + "\n")
                log.flush()
                records.append(record)
                now = f"loss {record.loss:.4f}  lr·S/2 {record.ratio:.2f}"
                progress.update(bar, completed=record.step + 1, now=now)
            progress.update(bar, completed=cell.steps)
            runs.append((cell, records))
    title = f"tanh MLP on digits, full batch, in {framework}"
    figures.draw(title, runs, out / "demo.png")
    _print_table(runs)
    print(f"records: {out / 'demo.jsonl'}\nfigure: {out / 'demo.png'}")
    return 0


def _print_table(runs: Sequence[figures.Run]) -> None:
    head = ("method", "lr", "steps", "loss", "S: first → last", "2/lr", "late lr·S/2")
    rows = [
        (
            METHODS[cell.method].title,
            f"{cell.lr:g}",
            f"{cell.steps}",
            f"{records[-1].loss:.4f}",
            f"{records[0].sharpness:.4g} → {records[-1].sharpness:.4g}",
            f"{2 / cell.lr:.4g}",
            f"{results.outcome(cell, records).late:.3f}",
        )
        for cell, records in runs
    ]
    print(f"\n{results.markdown(head, rows)}")
    print("late: the median over the last fifth of the steps; the edge is at 1")
