"""Measuring one checkpoint after another, in one norm or several; a log makes it resumable."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from geodiag.certificates.certificate import require_envelope
from geodiag.checkpoints.identity import identity
from geodiag.core.validation import is_iterable, is_whole, require_flag
from geodiag.errors import ArgumentError, CheckpointError, GeodiagError, printable, shown
from geodiag.estimators import Options, SharpnessEstimator
from geodiag.monitoring.run_header import run_header
from geodiag.norms.base import Norm
from geodiag.oracles import CountingOracle, Problem
from geodiag.plugins import registry
from geodiag.problems import as_norm, problem
from geodiag.records import Header, Record, Run, new_run, read_runs
from geodiag.records.header import plain
from geodiag.sharpness import measured, named_estimator
from geodiag.sinks import Log, Sink, as_sinks

Key: TypeAlias = tuple[str | int, str]
# What differs between two calls that measure the same.
INCIDENTAL = ("versions", "command", "started")


@dataclass(frozen=True)
class Checkpoint:
    """One point to measure: its step, its name in records, and the path or the point itself."""

    step: int
    name: str
    source: Any

    @property
    def key(self) -> Key:
        """What a record of it is found by in a log: its path, or its step, and which version."""
        path = isinstance(self.source, (str, os.PathLike))
        return self.name if path else self.step, identity(self.source)


def along(
    model: Any,
    checkpoints: Any,
    norms: str | Norm | Sequence[str | Norm] = ("l2",),
    *,
    log: Log = None,
    mode: str = "a",
    estimator: SharpnessEstimator | str = "auto",
    max_hvps: int | None = None,
    rtol: float | None = None,
    certificate: bool = False,
    seed: int = 0,
    progress: Callable[[Record], Any] | bool = False,
    **problem_arguments: Any,
) -> list[Record]:
    """Measure S at each checkpoint, in each norm.

    The model is left as it is: a checkpoint is the point of a measurement, and is not loaded. Each
    search is cold, so that a record does not depend on the others. With a ``log`` of one file, what
    it has already is not measured again: the run of each norm goes on. A checkpoint that has been
    written again since is measured again, and the log then has a later record of it, too.

    Args:
        model: as in :func:`geodiag.sharpness`: a torch module, or a JAX loss with ``params=``, a
            pytree like those of the checkpoints.
        checkpoints: paths, or points as in ``problem.at(point)``, in a list; or a dict that gives
            each its step. For torch: files of ``torch.save`` (read with ``weights_only``) and
            safetensors, and Hugging Face directories. For JAX: msgpack of flax, safetensors, and
            directories of orbax.
        norms: registered names or Norm objects.
        log: as in :class:`geodiag.Monitor`; a run for each norm.
        mode: "a": append to the file of ``log``, or resume; "w": empty it first.
        estimator: as in :func:`geodiag.sharpness`, like those up to ``seed``.
        max_hvps: the largest number of Hessian-vector products of one measurement.
        rtol: the relative tolerance of S.
        certificate: whether to compute an upper bound on S.
        seed: of the random starts.
        progress: True writes a line for each record to stderr; or a function of a Record.
        **problem_arguments: those of :func:`geodiag.problem`.

    Returns:
        list[Record]: one for each checkpoint and norm, by their steps. ``step`` is the last number
        in the checkpoint's name, or its place if not each has another; extras are ``checkpoint``,
            ``norm`` and ``saved``, which tells the version of a checkpoint. Where the loss is not
            finite, S is NaN and the note says so.

    Raises:
        CheckpointError: a file is missing, cannot be read, or does not fit: what is missing,
            unknown or of another shape is named. What was measured before is in the log.
        GeodiagError: another subclass for other unusable arguments.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> states = {step: {k: x * step for k, x in model.state_dict().items()} for step in (1, 2)}
        >>> data, mse = (torch.eye(2), torch.zeros(2, 1)), torch.nn.functional.mse_loss
        >>> records = geodiag.along(model, states, ["l2", "linf"], criterion=mse, data=data)
        >>> [(r.step, r.norm, round(r.sharpness, 4)) for r in records]
        [(1, 'l2', 3.0), (1, 'linf', 8.0), (2, 'l2', 3.0), (2, 'linf', 8.0)]
    """
    found = checkpoints_of(checkpoints)
    asked = [norms] if isinstance(norms, (str, Norm)) else list(norms)
    if not asked:
        raise ArgumentError("norms= is empty", do='pass e.g. norms=("l2", "spectral")')
    options = Options(rtol=rtol, max_hvps=max_hvps, seed=seed)
    require_flag(certificate, "certificate=")
    named_estimator(estimator)
    built = problem(model, **problem_arguments)
    try:
        settings = {"estimator": shown(estimator), "rtol": rtol, "max_hvps": max_hvps}
        settings |= {"certificate": certificate, "label": ""}
        if "where" in problem_arguments:
            settings["where"] = shown(problem_arguments["where"])
        known = _known(log, mode)
        series = [_series(each, built, seed, settings, known, certificate) for each in asked]
        names = [each.name for each in series]
        if len(set(names)) < len(names):
            raise ArgumentError("norms= names one norm twice", got=", ".join(names))
        sinks = as_sinks(log, mode) if built.leads else []
        try:
            search = {"options": options, "estimator": estimator, "certificate": certificate}
            told = progress if callable(progress) else _Lines(len(found) * len(asked), progress)
            return list(_records(built, found, series, sinks, search, told))
        finally:
            for sink in sinks:
                sink.close()
    finally:
        if built is not model:
            built.close()


@dataclass(frozen=True)
class _Series:
    """One norm: its run, and the records of it that the log has."""

    name: str
    norm: Norm
    header: Header
    done: Mapping[Key, Record]


def _series(
    asked: str | Norm,
    built: Problem,
    seed: int,
    settings: Mapping[str, Any],
    known: Sequence[Run],
    certificate: bool,
) -> _Series:
    norm = as_norm(asked)
    space = built.at().space
    bound = norm.bind(space)
    if certificate:
        require_envelope(bound, space)
    name = asked if isinstance(asked, str) else repr(norm)
    header = run_header(new_run(), built, norm, dict, seed)
    rest = {k: x for k, x in settings.items() if x is not None}
    header = replace(header, values=plain({**header.values, **rest, "label": name}))
    for run in known:
        if _lasting(run.header) == _lasting(header.values):
            done: dict[Key, Record] = {}
            for r in run:
                saved = str(r.extras.get("saved", ""))
                done |= {(str(r.extras.get("checkpoint", "")), saved): r, (r.step, saved): r}
            return _Series(name, norm, Header(run.id, run.header), done)
    return _Series(name, norm, header, {})


def _lasting(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: x for k, x in values.items() if k not in INCIDENTAL}


def _known(log: Any, mode: str) -> list[Run]:
    """The runs that a log of one file has."""
    if mode == "w" or not isinstance(log, (str, os.PathLike)):
        return []
    path = Path(log)
    return read_runs(path) if path.is_file() and path.stat().st_size else []


def _records(
    built: Problem,
    checkpoints: Sequence[Checkpoint],
    series: Sequence[_Series],
    sinks: Sequence[Sink],
    search: Mapping[str, Any],
    told: Callable[[Record], Any],
) -> Iterable[Record]:
    begun: set[str] = set()
    for each in checkpoints:
        oracle, key = None, each.key
        for of in series:
            record = of.done.get(key) if key[1] else None
            if record is None:
                oracle = _oracle(built, each) if oracle is None else oracle
                extras = {"checkpoint": each.name, "norm": of.name, "saved": key[1]}
                record = _record(each.step, oracle, of, extras, search)
                for sink in sinks:
                    if of.header.run not in begun and not of.done:
                        sink.start(of.header)
                    sink.write(record)
                begun.add(of.header.run)
                told(record)
            yield record


def _record(
    step: int, oracle: Any, of: _Series, extras: dict[str, Any], search: Mapping[str, Any]
) -> Record:
    began, counted = time.perf_counter(), CountingOracle(oracle)
    loss = float(oracle.loss())
    result = measured(counted, of.norm, throw=False, **search)
    failed = result.status.failed
    return Record(
        step,
        loss=loss,
        sharpness=math.nan if failed else result.value,
        bound="" if failed else result.bound.name,
        upper=math.nan if failed or result.upper is None else float(result.upper),
        dual_norm=result.dual_norm,
        num_hvps=counted.num_hvps,
        seconds=time.perf_counter() - began,
        note=printable("; ".join(result.notes)),
        status=result.status.name,
        run=of.header.run,
        extras=extras,
    )


def _oracle(built: Problem, checkpoint: Checkpoint) -> Any:
    name, point = printable(checkpoint.name), checkpoint.source
    if isinstance(point, (str, os.PathLike)):
        point = registry.checkpoint(built, Path(point))
    try:
        built.require_whole(point)
        return built.at(point)
    except GeodiagError as e:
        raise CheckpointError(
            f"the checkpoint {name} does not fit: {e.what}", got=e.got, do=e.do
        ) from e


def checkpoints_of(given: Any) -> list[Checkpoint]:
    """What ``checkpoints=`` holds, with a step for each.

    Raises:
        CheckpointError: a file is missing.
        ArgumentError: there are none, two of one name, or a step is no whole number.
    """
    single = isinstance(given, (str, os.PathLike))
    if isinstance(given, Mapping):
        named = [(step, _name(x, str(step)), x) for step, x in given.items()]
    elif single or is_iterable(given):
        listed = [given] if single else list(given)
        names = [_name(x, str(i)) for i, x in enumerate(listed)]
        named = list(zip(_steps(names), names, listed, strict=True))
    else:
        raise ArgumentError("checkpoints= must be a list of paths or points", got=shown(given))
    if not named:
        raise ArgumentError("there are no checkpoints", got=shown(given))
    for step, name, x in named:
        if not is_whole(step):
            raise ArgumentError("the step of a checkpoint must be a whole number", got=shown(step))
        if isinstance(x, (str, os.PathLike)) and not os.path.exists(x):
            raise CheckpointError("there is no such checkpoint", got=printable(name))
    if len({name for _, name, _ in named}) < len(named):
        raise ArgumentError("a checkpoint is named twice", got=shown([n for _, n, _ in named]))
    found = [Checkpoint(int(step), name, x) for step, name, x in named]
    return sorted(found, key=lambda each: each.step)


def _name(x: Any, otherwise: str) -> str:
    return os.fspath(x) if isinstance(x, (str, os.PathLike)) else otherwise


def _steps(names: Sequence[str]) -> list[int]:
    """The last number in each file's name; where two have the same or one has none, its place."""
    found = [re.findall(r"\d{1,15}", Path(name).name.partition(".")[0]) for name in names]
    steps = [int(numbers[-1]) for numbers in found if numbers]
    return steps if len(set(steps)) == len(names) else list(range(len(names)))


class _Lines:
    """Progress on stderr: a line for each record, with the time that is left at about this pace."""

    def __init__(self, total: int, shown: bool) -> None:
        self._total, self._shown, self._done = total, shown, 0
        self._began = time.perf_counter()

    def __call__(self, record: Record) -> None:
        self._done += 1
        if self._shown:
            spent = time.perf_counter() - self._began
            left = spent / self._done * (self._total - self._done)
            text = f"{record.extras['checkpoint']}, {record.extras['norm']}"
            value = f"S = {record.sharpness:.4g}, {record.num_hvps} HVPs"
            line = f"{self._done}/{self._total} {text}: {value}; at most {left:.0f} s left"
            print(printable(line), file=sys.stderr)
