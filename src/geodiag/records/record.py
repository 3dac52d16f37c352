"""The Record of one measurement, and the declaration of each of its built-in quantities."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from geodiag.core.display import pairs
from geodiag.core.quantity import Panel, Quantity, is_name
from geodiag.errors import ArgumentError, PluginError, cut, printable, shown
from geodiag.plugins import Registry, registry

BOUNDS = ("EXACT", "LOWER", "")
CURVATURES = Panel("curvature in the measured norm", height=2.0, scale="wide")
EDGE = Panel("S / threshold, ζ", scale="zero", line=1.0)
RATES = Panel("learning rate", scale="log")  # drawn where a critical one is known
PER_NORM2 = "loss/norm²"


def _declared(label: str, *, default: Any = math.nan, **attributes: Any) -> Any:
    """A field of the Record, with the other attributes of its Quantity."""
    return field(default=default, metadata={"label": label, **attributes})


@dataclass(frozen=True)
class Record:
    """One measurement of a training run: flat, typed, NaN where a number is not known.

    A field is declared here and nowhere else: its annotation and the attributes of its
    :class:`~geodiag.core.quantity.Quantity`. Logs, sinks, plots and the live table follow.

    Attributes:
        step: the number of the step.
        loss: L(w) on the measured data.
        lr: the learning rate.
        sharpness: S at w, in loss units per squared unit of the norm.
        bound: what the value is to S: "EXACT"; "LOWER", a lower bound; or "" where there is none.
        upper: a certified upper bound on S.
        dual_norm: ‖∇L(w)‖*.
        directional_smoothness: D along the step s = w⁺ − w.
        curvature: ⟨s, ∇²L(w) s⟩/‖s‖² along the same step.
        threshold: the value of S above which the update rule is unstable.
        ratio: S/threshold; the edge of stability is at 1.
        num_hvps: Hessian-vector products spent, every one counted.
        seconds: the time that the measurement took.
        note: what failed, what is not known, and why.
        realized_edge: ζ = 1 + ΔL/(−⟨g, s⟩) of the same step: the loss falls below 1.
        occupation: curvature/S: how much of the step lies along the sharp direction.
        timing: −2⟨g, s⟩/(threshold·‖s‖²): how far the step still points along the gradient.
            ζ = ratio·occupation/timing on a quadratic.
        status: how the search for S ended, the name of a :class:`~geodiag.results.Status`; "" in
            logs of older versions.
        run: the id of the run, of which the log has a header; "" in logs of older versions. Records
            are equal if what was measured is, of whichever run.
        critical_lr: the learning rate at which the same step would leave the loss as it is, see
            :func:`geodiag.critical_lr`; with ``critical=True``. Where the record has no learning
            rate it is the multiple of the step.
        critical_lr_error: half the width of the bracket that it was found in.
        extras: the values of quantities from plugins or of an unknown column of a log, by name;
            ``record.name`` reads them too.

    Examples:
        >>> record = geodiag.Record(step=3, sharpness=2.0)
        >>> record.sharpness, record.loss
        (2.0, nan)
    """

    step: int = field(metadata={"label": "step"})
    loss: float = _declared("loss", panel=Panel(scale="log"), mark="thin")
    lr: float = _declared("learning rate", panel=RATES, mark="thin", column=None)
    sharpness: float = _declared(
        "sharpness S", unit=PER_NORM2, panel=CURVATURES, column="S", bound="bound"
    )
    bound: str = _declared("bound", default="", choices=BOUNDS, column=None)
    upper: float = _declared(
        "up to the certified bound", unit=PER_NORM2, panel=CURVATURES, mark="band"
    )
    dual_norm: float = _declared("dual norm of the gradient", unit="loss/norm", column=None)
    directional_smoothness: float = _declared(
        "directional smoothness D", unit=PER_NORM2, panel=CURVATURES, mark="dots", column="D"
    )
    curvature: float = _declared("curvature along the step", unit=PER_NORM2, column=None)
    threshold: float = _declared(
        "edge of stability", unit=PER_NORM2, panel=CURVATURES, mark="dashes"
    )
    ratio: float = _declared("S / threshold", panel=EDGE, column="S/threshold")
    num_hvps: int = _declared("Hessian-vector products", default=0, column="HVPs")
    seconds: float = _declared("time of the measurement", unit="s", column=None)
    note: str = _declared("note", default="")
    realized_edge: float = _declared("realized edge ζ", panel=EDGE, mark="dots", column="ζ")
    occupation: float = _declared("occupation", column=None)
    timing: float = _declared("timing", column=None)
    status: str = _declared("status of the search", default="", column=None)
    run: str = field(default="", compare=False, metadata={"label": "run", "column": None})
    critical_lr: float = _declared(
        "critical learning rate",
        panel=RATES,
        mark="dots",
        column="critical lr",
        error="critical_lr_error",
    )
    critical_lr_error: float = _declared("error of the critical learning rate", column=None)
    extras: dict[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        for name in self.extras:
            if not is_name(name) or name in BUILT_IN:
                raise ArgumentError("an extra of a Record has an unusable name", got=shown(name))

    def __getattr__(self, name: str) -> Any:
        """A value of :attr:`extras`; only called where there is no field of this name."""
        try:
            return self.__dict__["extras"][name]
        except KeyError:
            raise AttributeError(f"a Record has no field or extra {name!r}") from None

    def __str__(self) -> str:
        known = (q for q in BUILT_IN.values() if q.column is not None and q.kind is not str)
        texts = [(q.column or q.name, value_text(self, q)) for q in known if q.name != "step"]
        parts = [(n, x) for n, x in self.extras.items() if n.startswith("ratio_") and x == x]
        texts += [(n, f"{x:.4g}") for n, x in parts if isinstance(x, float)]
        said = ", ".join(f"{name} {text}" for name, text in texts if text not in ("", "0"))
        note = f"\n  note: {printable(cut(self.note))}" if self.note else ""
        return f"step {self.step}: {said}{note}"

    def _repr_html_(self) -> str:
        rows = [
            (each.label, value_text(self, each))
            for each in BUILT_IN.values()
            if each.name not in ("bound", "step", "note")
        ]
        rows += [(name, x) for name, x in self.extras.items()]
        return pairs(f"Record of step {self.step}", rows, [self.note])

    def to_dict(self) -> dict[str, Any]:
        """All values by name, those of :attr:`extras` last.

        >>> Record(3, extras={"noise": 0.5}).to_dict()["noise"]
        0.5
        """
        values = dict(self.__dict__)
        extras: dict[str, Any] = values.pop("extras")
        return values | extras


def value_text(record: Record, quantity: Quantity) -> str:
    """A value of a record as people read it: ``≥`` before a lower bound; "" where unknown."""
    value = getattr(record, quantity.name, quantity.default)
    if isinstance(value, float):
        text = "" if value != value else f"{value:.4g}"
        lower = quantity.bound and getattr(record, quantity.bound) == "LOWER"
        return f"≥ {text}" if text and lower else text
    return printable(cut(str(value)))


_TYPES = {"float": float, "int": int, "str": str}
BUILT_IN = {
    f.name: Quantity(f.name, kind=_TYPES[str(f.type)], **f.metadata)
    for f in fields(Record)
    if f.name != "extras"
}
_DEFAULTS = {f.name: f.default for f in fields(Record) if f.name != "extras"}
_PLAIN = {name: each.kind for name, each in BUILT_IN.items() if not each.choices}


def quantities(plugins: Registry = registry) -> dict[str, Quantity]:
    """All quantities of a Record by name: the built-in ones, then those of plugins.

    Raises:
        PluginError: a plugin returns something else, or a name that is taken.
    """
    found, owners = dict(BUILT_IN), dict.fromkeys(BUILT_IN, "geodiag")
    for owner, answer in plugins.answers("geodiag_quantities"):
        listed = isinstance(answer, (list, tuple))
        if not listed or not all(isinstance(each, Quantity) for each in answer):
            raise PluginError(
                f"the plugin {owner!r} must return a list of Quantity objects from "
                "geodiag_quantities",
                got=shown(answer),
            )
        for each in answer:
            if each.name in found:
                raise PluginError(
                    f"two quantities have the name {each.name!r}",
                    got=f"one of {owners[each.name]}, one of {owner}",
                    do="rename one, or uninstall one of the two",
                )
            found[each.name], owners[each.name] = each, owner
    return found


def record_of(found: Mapping[str, Any], line: str, newer: bool = False) -> Record:
    """The record of a line's named values. Unknown names become :attr:`Record.extras`.

    Args:
        found: the values; one of an unknown name is a float if it reads as a number, else a text,
            and left out if it is neither.
        line: the line, for the error.
        newer: whether a later version of the library wrote the line; a known name whose value is
            of another type then has its default.

    Raises:
        ArgumentError: there is no step, or a value of another type.
    """
    if "step" not in found:
        raise ArgumentError("a line of a log has no step", got=shortened(line))
    known: dict[str, Any] = _DEFAULTS.copy()
    extras: dict[str, float | str] = {}
    for name, x in found.items():
        kind = _PLAIN.get(name)
        if type(x) is kind:  # nearly all values of a log: what parse would return
            known[name] = sys.intern(str(x)) if kind is str else x
            continue
        if x is None and kind is float:
            continue
        try:
            if name in BUILT_IN:
                known[name] = BUILT_IN[name].parse(x)
            elif is_name(name) and not isinstance(x, bool):
                extras[name] = math.nan if x is None else float(x)
        except (TypeError, ValueError, OverflowError) as e:
            if name not in BUILT_IN:
                extras |= {name: x} if isinstance(x, str) else {}
            elif name == "step" or not newer:
                what = "a line of a log holds a value of another type"
                raise ArgumentError(what, got=shortened(line)) from e
    record = object.__new__(Record)  # in half the time of Record(...): a log may be long
    record.__dict__.update(known, extras=extras)
    return record


def shortened(line: str) -> str:
    """A line of a log, as an error shows it."""
    return repr(line if len(line) <= 60 else line[:60] + "…")
