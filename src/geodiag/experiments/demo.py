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

import numpy as np

from geodiag.errors import ArgumentError
from geodiag.experiments.reproduction import data, figures, results, runner
from geodiag.experiments.reproduction.cells import METHODS, Cell, Training, chosen
from geodiag.experiments.reproduction.frameworks import check_installed, make_trainer
from geodiag.experiments.reproduction.training import train

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
            rows = []
            for taken in train(cell, make_trainer(framework, "mlp", task)):
                line = results.to_line(taken.record, labels | {"framework": framework})
                log.write(line + "\n")
                log.flush()
                row = results.from_line(line)
                rows.append(row)
                now = f"loss {row['loss']:.4f}  lr·S/2 {row['ratio']:.2f}"
                progress.update(bar, completed=row["step"] + 1, now=now)
            progress.update(bar, completed=cell.steps)
            runs.append((cell, rows))
    title = f"tanh MLP on digits, full batch, in {framework}"
    figures.draw(title, runs, out / "demo.png")
    _print_table(runs)
    print(f"records: {out / 'demo.jsonl'}\npicture: {out / 'demo.png'}")
    return 0


def _print_table(runs: Sequence[figures.Run]) -> None:
    print("\nmethod                lr  steps    loss   S: first → last     2/lr  late lr·S/2")
    for cell, rows in runs:
        rise = f"{rows[0]['sharpness']:.4g} → {rows[-1]['sharpness']:.4g}"
        late = results.outcome(cell, rows).late
        print(
            f"{METHODS[cell.method].title:16} {cell.lr:>7g} {cell.steps:>6} "
            f"{rows[-1]['loss']:>7.4f} {rise:>17} {2 / cell.lr:>8.4g} {late:>12.3f}"
        )
    print("late: the median over the last fifth of the steps; the edge is at 1")
