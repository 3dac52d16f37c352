"""A sink for a run of Weights & Biases, beside a training that logs to the same run.

A run is a list of rows, the last of which is open. ``run.log(values, step=n)`` closes it and opens
row n; values for a row below the open one are dropped. So a sink that opened a row past the
training's next step would make W&B drop what the training logs.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from typing import Any

from geodiag.errors import SinkError, import_optional, printable
from geodiag.records import BUILT_IN, EDGE, Header, Record
from geodiag.sinks.background import QUEUE, Background
from geodiag.sinks.base import PREFIX, config, metrics

ROW_WAIT = 0.1  # seconds that a record may wait to find the row that is open now
POINTS = 1000  # of a line of the chart, at least, where there are so many records
_FIELDS = {name: name for name in ("step", "lineKey", "lineVal")}  # of W&B's own kind of chart


class WandB(Background):
    """A run of Weights & Biases; see :class:`~geodiag.sinks.background.Background`.

    The metrics have an axis of their own, ``geodiag/step``. If the training logs to the run without
    ``step=``, or the run is the sink's own, each record is a row. If it logs with ``step=``, no row
    past its own is opened: a record joins the row that is open. Where that has one already, records
    wait for the training's next rows, or take rows between them, up to the record's step, if the
    training's steps are seen to be the records'. As long as nothing else was logged, it is not
    known which holds, and records wait, if need be until :meth:`close`.

    :meth:`close` adds a custom chart to the row that is open: the ratio and ζ of the sink's records
    beside the edge, 1. Of more than 2,000 records it has the greater of two neighbours.

    Args:
        run: a run of ``wandb.init``; None: the run in progress or else a new one, which
            :meth:`close` then finishes. Log to a new one without ``step=``.
        prefix: put before each metric's name.
        init: keywords of ``wandb.init`` for a new run, e.g. ``mode="offline"``.

    Raises:
        MissingDependency: wandb is not installed.
    """

    def __init__(self, run: Any = None, *, prefix: str = PREFIX, **init: Any) -> None:
        super().__init__()
        what, do = "this sink needs the package wandb", 'pip install "geodiag[sinks]"'
        package = import_optional("wandb", what, do)
        found = run if run is not None else package.run
        self._own = found is None
        self._run = package.init(**init) if found is None else found
        self._package = package
        self._prefix = prefix
        self._run.define_metric(prefix + "step")
        self._run.define_metric(prefix + "*", step_metric=prefix + "step")
        for each in BUILT_IN.values():  # the table of runs has the greatest ratio and ζ, too
            if each.panel is EDGE:
                axis = {"step_metric": prefix + "step", "summary": "max,last"}
                self._run.define_metric(prefix + each.name, **axis)
        self._lines: dict[str, list[tuple[int, float]]] = {}  # of the chart, by name
        self._held: deque[Record] = deque()
        self._expected = self._run.step  # the open row, if nobody else logs
        self._seen = False  # whether somebody else does
        self._row: int | None = None  # where the last record is, until that row is closed
        self._newest = self._between = 0  # the step of the last record, and since the one before
        self._in_step = False  # whether the training's rows were seen to be the records' steps

    def write(self, record: Record) -> None:
        self._newest, self._between = record.step, record.step - self._newest
        super().write(record)
        self.flush(ROW_WAIT)

    def describe(self, header: Header) -> None:
        """The config of the run, under the prefix; a run that is resumed may have had another."""
        self._run.config.update(config(header, self._prefix), allow_val_change=True)

    def send(self, record: Record) -> None:
        if len(self._held) >= QUEUE:
            raise SinkError(f"{QUEUE} records wait for a row of the training's")
        self._held.append(record)
        self._draw(record)
        self._look()
        self._place(free=self._own or (self._seen and not self._uses_steps()))

    def finish(self) -> None:
        try:
            if self._held:
                self._look()
                self._place(free=self._own or not self._uses_steps())
        finally:
            if self._held:
                why = "the training logged fewer rows; log more often, or without step="
                self._drop(len(self._held), why)
        with suppress(Exception):  # of a run that is finished; no record is lost
            self._chart()
        if self._own:
            self._run.finish()

    def _draw(self, record: Record) -> None:
        """Keep what the chart shows of a record."""
        for name, each in BUILT_IN.items():
            value = getattr(record, name)
            if each.panel is EDGE and math.isfinite(value):
                line = self._lines.setdefault(each.title, [])
                line.append((record.step, value))
                if len(line) == 2 * POINTS:
                    pairs = zip(line[::2], line[1::2], strict=True)
                    line[:] = [max(pair, key=lambda point: point[1]) for pair in pairs]

    def _chart(self) -> None:
        """A line for the ratio, for ζ and for the edge, as a table that W&B draws."""
        steps = [step for line in self._lines.values() for step, _ in line]
        if not steps:
            return
        lines = self._lines | {"edge": [(min(steps), 1.0), (max(steps), 1.0)]}
        data = [[step, name, value] for name, line in lines.items() for step, value in line]
        table = self._package.Table(columns=list(_FIELDS), data=data)
        texts = {"title": EDGE.label, "xname": "step"}
        # The table is outside of the prefix, and so has no axis: it takes no row of its own.
        chart = self._package.plot_table(
            "wandb/lineseries/v0", table, _FIELDS, texts, split_table=True
        )
        self._run.log({self._prefix + "edge": chart}, commit=False)

    def _look(self) -> None:
        """Notice what the training has logged since the last record."""
        self._run.log({}, commit=False)  # an error at once if the run is finished; else nothing
        row, newest, between = self._run.step, self._newest, self._between
        self._seen |= row != self._expected or self._uses_steps()
        if row not in (self._expected, self._row) and newest >= 2 * between > 0:
            self._in_step |= row >= newest - between
        self._expected = row

    def _place(self, free: bool) -> None:
        """Log the records that wait, in their order, as far as there are rows for them."""
        while self._held:
            row = self._run.step
            if row == self._row and free:
                self._run.log({}, commit=True)
            elif row == self._row:
                if not self._in_step or row >= self._newest:
                    break
                self._run.log({}, step=row + 1)
            record = self._held.popleft()
            values: dict[str, Any] = {self._prefix + "step": record.step}
            values |= metrics(record, self._prefix)
            if record.note:
                values[self._prefix + "note"] = printable(record.note)
            self._run.log(values, commit=free)
            self._expected = self._run.step
            self._row = None if free else self._expected

    def _uses_steps(self) -> bool:
        """Whether anything was logged to the run with ``step=``; True where W&B does not say."""
        feature = getattr(getattr(self._run, "_telemetry_obj", None), "feature", None)
        return bool(getattr(feature, "set_step_log", True))
