"""TensorBoard and MLflow. Each package is imported when its sink is created.

Numbers that are not known are left out of the charts; a record's note is logged as text.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from geodiag.errors import import_optional, printable
from geodiag.records import Header, Panel, Quantity, Record, quantities
from geodiag.sinks.background import Background
from geodiag.sinks.base import PREFIX, flat, header_text, metrics


class TensorBoard(Background):
    """Event files for TensorBoard (the package ``tensorboard``; neither torch nor TensorFlow).

    The tab "Custom Scalars" has a chart for each panel of :func:`geodiag.plot`.

    See :class:`~geodiag.sinks.background.Background`.

    Args:
        folder: of the event file.
        prefix: put before each metric's name.

    Raises:
        MissingDependency: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, prefix: str = PREFIX) -> None:
        super().__init__()
        writers = _package("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._proto = _package("tensorboard.compat.proto.event_pb2", "tensorboard")
        self._summary = _package("tensorboard.compat.proto.summary_pb2", "tensorboard")
        self._tensor = _package("tensorboard.compat.proto.tensor_pb2", "tensorboard")
        self._types = _package("tensorboard.compat.proto.types_pb2", "tensorboard")
        self._layouts = _package("tensorboard.plugins.custom_scalar.layout_pb2", "tensorboard")
        self._writer = writers.EventFileWriter(os.fspath(folder))
        self._folder, self._prefix = folder, prefix

    def send(self, record: Record) -> None:
        values = [
            self._summary.Summary.Value(tag=name, simple_value=x)
            for name, x in metrics(record, self._prefix).items()
        ]
        if record.note:
            values.append(self._text("note", record.note))
        summary = self._summary.Summary(value=values)
        event = self._proto.Event(wall_time=time.time(), step=record.step, summary=summary)
        self._writer.add_event(event)
        self._writer.flush()

    def describe(self, header: Header) -> None:
        text = self._text("run", header_text(header))
        summary = self._summary.Summary(value=[text, self._layout()])
        self._writer.add_event(self._proto.Event(wall_time=time.time(), step=0, summary=summary))

    def finish(self) -> None:
        self._writer.close()

    def _text(self, name: str, text: str) -> Any:
        return self._value(self._prefix + name, "text", printable(text).encode())

    def _layout(self) -> Any:
        """The charts of the tab "Custom Scalars": a chart for each panel of a figure."""
        panels: dict[Panel, list[Quantity]] = {}
        for each in quantities().values():
            if each.panel is not None and each.kind is not str:
                panels.setdefault(each.panel, []).append(each)
        charts = [
            self._layouts.Chart(
                title=panel.label or drawn[0].title,
                multiline=self._layouts.MultilineChartContent(
                    tag=[f"^{re.escape(self._prefix + each.name)}$" for each in drawn]
                ),
            )
            for panel, drawn in panels.items()
        ]
        title = self._prefix.strip("/") or "geodiag"
        layout = self._layouts.Layout(category=[self._layouts.Category(title=title, chart=charts)])
        return self._value("custom_scalars__config__", "custom_scalars", layout.SerializeToString())

    def _value(self, tag: str, plugin: str, content: bytes) -> Any:
        data = self._summary.SummaryMetadata.PluginData(plugin_name=plugin)
        tensor = self._tensor.TensorProto(
            dtype=self._types.DT_STRING, string_val=[content], tensor_shape=None
        )
        metadata = self._summary.SummaryMetadata(plugin_data=data)
        return self._summary.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)

    def __repr__(self) -> str:
        return f"TensorBoard({os.fspath(self._folder)!r})"


class MLflow(Background):
    """A run of MLflow, at MLflow's tracking URI.

    See :class:`~geodiag.sinks.background.Background`.

    Args:
        run_id: the run; None: the active one or else a new one, which :meth:`close` then ends.
        prefix: put before each metric's name.

    Raises:
        MissingDependency: mlflow is not installed.
    """

    def __init__(self, run_id: str | None = None, *, prefix: str = PREFIX) -> None:
        super().__init__()
        package = _package("mlflow", "mlflow-skinny")
        entities = _package("mlflow.entities", "mlflow-skinny")
        self._metric, self._param, self._tag = entities.Metric, entities.Param, entities.RunTag
        self._client = package.MlflowClient()
        active = package.active_run()
        self._own = run_id is None and active is None
        if run_id is None:
            run_id = (active or package.start_run()).info.run_id
        self._run_id, self._prefix, self._package = run_id, prefix, package

    def send(self, record: Record) -> None:
        now = int(1000 * time.time())
        found = metrics(record, self._prefix).items()
        points = [self._metric(name, x, now, record.step) for name, x in found]
        self._client.log_batch(self._run_id, metrics=points)
        if record.note:  # a tag holds the last note
            text = f"step {record.step}: {printable(record.note)}"
            self._client.set_tag(self._run_id, self._prefix + "note", text[:5000])

    def describe(self, header: Header) -> None:
        """Parameters of the run; MLflow does not change one, so what is another now is a tag."""
        known = self._client.get_run(self._run_id).data.params
        values = {"run": header.run, **flat(header.values)}.items()
        texts = {self._prefix + name: printable(str(x))[:500] for name, x in values}
        params = [self._param(k, x) for k, x in texts.items() if k not in known]
        tags = [self._tag(k, x) for k, x in texts.items() if known.get(k, x) != x]
        for at in range(0, len(texts), 100):  # as many as one request may have
            part = slice(at, at + 100)
            self._client.log_batch(self._run_id, params=params[part], tags=tags[part])

    def close(self) -> None:
        own, self._own = self._own and os.getpid() == self._process, False
        super().close()
        if own and not self._dropped and self.flush(0.0):  # the server answers
            active = self._package.active_run()  # of this thread
            if active is not None and active.info.run_id == self._run_id:
                self._package.end_run()


def _package(module: str, distribution: str) -> Any:
    what = f"this sink needs the package {distribution}"
    return import_optional(module, what, do='pip install "geodiag[sinks]"')
