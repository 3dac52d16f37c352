"""Run all cells, two at a time in separate processes; finished cells are kept and not run again.

A cell writes to ``KEY.part``, which is renamed to ``KEY.jsonl`` once it is complete and on disk.
The progress bars are read from these files. If a run is killed, its processes end with it, so that
none of them writes to the files of the next run.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from geodiag.errors import ArgumentError
from geodiag.experiments.reproduction import data, figures
from geodiag.experiments.reproduction.cells import METHODS, MODELS, TRAININGS, Cell, chosen
from geodiag.experiments.reproduction.frameworks import check_installed, make_trainer
from geodiag.experiments.reproduction.measuring import measured
from geodiag.experiments.reproduction.observed import observed
from geodiag.experiments.reproduction.quadratics import Quadratic, quadratics
from geodiag.experiments.reproduction.results import (
    USED,
    edge_of,
    outcome,
    quadratics_table,
    table,
)
from geodiag.records import read_records, to_json
from geodiag.report.watch import Tail

WORKERS = 2
QUICK = ("mlp",)
POLL = 0.5  # seconds between two readings of the files
# Each worker has one core: two workers fill two, and timings do not depend on the machine's size.
ALONE = {
    "OMP_NUM_THREADS": "1",
    "JAX_ENABLE_X64": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def run(
    framework: str = "torch",
    methods: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    data_folder: Path | None = None,
    out: Path = Path("geodiag-reproduction"),
    quick: bool = False,
    seed: int = 0,
) -> int:
    """Train and measure the chosen cells; write records, figures and ``results.md`` to ``out``.

    In float64, on the CPU. None means all ``methods`` or ``models``, and digits in place of
    CIFAR-10 from ``data_folder``. Returns the exit status: 1 if a cell did not finish, else 0.

    Raises:
        ArgumentError: an unknown framework, method or model, or models with ``quick``.
        DataError: the folder does not hold CIFAR-10.
        MissingDependency: the framework, scikit-learn, rich or matplotlib is not installed.
    """
    check_installed(framework, "the reproduction")
    if quick and models:
        raise ArgumentError("quick means the MLP alone", got=f"models {models}", do="leave one out")
    cells = plan(framework, methods, QUICK if quick else models, data_folder, seed)
    out.mkdir(parents=True, exist_ok=True)
    failed = _run_all([c for c in cells if not _path(c, out).exists()], data_folder, out)
    runs = [(c, read_records(_path(c, out))) for c in cells if c.key not in failed]
    shown = quadratics()
    _draw_all(runs, shown, out)
    cells_table = table([outcome(c, records) for c, records in runs], failed)
    report = f"{cells_table}\n### Quadratics of Section 5\n\n{quadratics_table(shown)}\n"
    draft = out / "results.md.part"
    draft.write_text(report, encoding="utf-8")
    draft.replace(out / "results.md")
    print(f"\n{report}\nrecords and figures: {out}")
    return 1 if failed else 0


def plan(
    framework: str,
    methods: Sequence[str] | None,
    models: Sequence[str] | None,
    data_folder: Path | None,
    seed: int,
) -> list[Cell]:
    """The chosen cells, model by model; optimizers as people use them learn digits alone."""
    cells = []
    names = chosen("method", methods, METHODS)
    for model in chosen("model", models, MODELS):
        digest = data.task(model, data_folder, seed).digest
        for method in names:
            if (method, model) not in TRAININGS:
                continue
            t = TRAININGS[method, model]
            cells.append(
                Cell(framework, method, model, t.lr, t.steps, t.measurements, seed, digest)
            )
    if not cells:
        used = [name for name in names if METHODS[name].optimizer]
        raise ArgumentError(f"{', '.join(used)} run on the MLP alone", do="add mlp to the models")
    return cells


def _alone() -> None:
    """Set the environment before a worker imports a framework, which reads it."""
    os.environ.update(ALONE)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def work(cell: Cell, data_folder: Path | None, out: Path) -> None:
    """Run one cell to its end and keep it."""
    task = data.task(cell.model, data_folder, cell.seed)
    trainer = make_trainer(cell.framework, cell.model, task)
    part = out / f"{cell.key}.part"
    with part.open("w", encoding="utf-8") as log:
        used = METHODS[cell.method].optimizer
        found = observed(cell, trainer, len(task.x)) if used else measured(cell, trainer)
        for record in found:
            if record.step == 0:
                record = replace(record, extras=record.extras | {"settings": asdict(cell)})
            log.write(to_json(record) + "\n")
            log.flush()
        os.fsync(log.fileno())  # else after a power failure the renamed file could be empty
    part.replace(_path(cell, out))


def bars() -> Any:
    """Progress bars of training runs, each with a text for how it stands now."""
    rich = import_module("rich.progress")
    return rich.Progress(
        *rich.Progress.get_default_columns(), rich.TextColumn("{task.fields[now]}")
    )


def _run_all(cells: Sequence[Cell], data_folder: Path | None, out: Path) -> dict[str, str]:
    """Run the cells; the errors of those that did not finish, by key."""
    if not cells:
        return {}
    # "spawn": a fork of a process that has loaded a framework may deadlock.
    context = multiprocessing.get_context("spawn")
    with (
        bars() as progress,
        ProcessPoolExecutor(min(WORKERS, len(cells)), context, initializer=_alone) as pool,
    ):
        running = {pool.submit(work, cell, data_folder, out): cell for cell in cells}
        shown = {
            cell.key: progress.add_task(f"{cell.model} {cell.method}", total=cell.steps, now="")
            for cell in cells
        }
        try:
            left = set(running)
            while left:
                _, left = wait(left, timeout=POLL)
                for future, cell in running.items():
                    _show(progress, shown[cell.key], cell, future, out)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {c.key: str(f.exception()) for f, c in running.items() if f.exception() is not None}


def _show(progress: Any, bar: Any, cell: Cell, future: Future[None], out: Path) -> None:
    if future.done():
        now = "" if future.exception() is None else "failed"
        progress.update(bar, completed=cell.steps, now=now)
        return
    log = Tail(out / f"{cell.key}.part")  # another process writes to it
    if future.running() and log.update():
        last = log.records[-1]
        now = f"loss {last.loss:.4f}  S/edge {last.sharpness / edge_of(last):.2f}"
        now += f"  ζ {last.realized_edge:.2f}"
        progress.update(bar, completed=last.step, now=now)


def _draw_all(runs: Sequence[figures.Run], shown: list[Quadratic], out: Path) -> None:
    used = [run for run in runs if METHODS[run[0].method].optimizer]
    if used:
        title = f"{USED}\n{MODELS['mlp']}, in {used[0][0].framework}"
        figures.draw(title, used, out / "used.png")
    for key, method in METHODS.items():
        own = [(cell, records) for cell, records in runs if cell.method == key]
        if own and not method.optimizer:
            title = (
                f"{method.title[0].upper()}{method.title[1:]}\nfull batch, in {own[0][0].framework}"
            )
            figures.draw(title, own, out / f"{key}.png")
    figures.draw_quadratics(shown, out / "quadratics.png")


def _path(cell: Cell, out: Path) -> Path:
    return out / f"{cell.key}.jsonl"
