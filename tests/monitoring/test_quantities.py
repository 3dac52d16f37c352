"""A quantity is added in one place: from outside by a plugin, or to the library by one declaration.

The one added here is ‖s‖²/‖∇L‖², of the step s = −lr·∇L, which is lr².
"""

from __future__ import annotations

import ast
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import geodiag
from geodiag import hookimpl
from geodiag.blocks import dot, subtract
from geodiag.cli import main
from geodiag.errors import ArgumentError, PluginError
from geodiag.plugins import Registry, registry
from geodiag.records import BUILT_IN, Panel, Quantity, Record, quantities, read_records
from geodiag.records.record import CURVATURES
from geodiag.sinks import JSONL, metrics
from tests.monitored import LR, H, note, pair, run

SOURCE = Path(geodiag.__file__).parents[1]


def squared_step(observation):
    step = subtract(observation.there, observation.here)
    return dot(step, step) / observation.known["dual_norm"] ** 2


SQUARED = Quantity(
    "squared_step", "squared step", "lr²", measure=squared_step, panel=Panel(), column="lr²"
)


def offering(*offered):
    class Plugin:
        @hookimpl
        def geodiag_quantities(self):
            return list(offered)

    return Plugin()


@pytest.fixture
def register():
    """Register quantities as a plugin's, for the length of a test."""
    plugins = []

    def added(*offered):
        plugins.append(offering(*offered))
        geodiag.register(plugins[-1], f"test quantities {len(plugins)}")

    yield added
    for plugin in plugins:
        registry._manager.unregister(plugin)


class TestFromOutside:
    def test_it_is_measured_logged_drawn_and_shown(self, register, tmp_path, capsys, monkeypatch):
        pytest.importorskip("matplotlib")
        pytest.importorskip("rich")
        register(SQUARED)
        seen, paths = [], [tmp_path / "run.jsonl", tmp_path / "run.csv"]
        monitor, w = pair(log=[*paths, seen.append])
        records = run(monitor, w)
        for record in records:
            assert record.squared_step == pytest.approx(LR**2, rel=1e-12)
            assert note(record) == ""
            assert metrics(record)["geodiag/squared_step"] == record.squared_step
        assert seen == records
        for path in paths:
            assert list(map(str, read_records(path))) == list(map(str, records))

        axes = geodiag.plot(paths[0]).axes
        assert [a.get_ylabel() for a in axes][3:] == ["squared step (lr²)"]
        assert axes[3].get_lines()[0].get_ydata().tolist() == [r.squared_step for r in records]
        geodiag.plot(records, tmp_path / "run.html")
        assert "<th>squared step</th>" in (tmp_path / "run.html").read_text("utf-8")

        monkeypatch.setenv("COLUMNS", "200")
        assert main(["watch", str(paths[1]), "--once"]) == 0
        heads, *rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
        assert rows[0][heads.index("lr²")] == "0.01"

    def test_a_log_is_read_and_drawn_without_the_plugin(self, tmp_path):
        pytest.importorskip("matplotlib")
        JSONL(tmp_path / "run.jsonl").write(Record(0, loss=0.5, extras={"squared_step": 0.01}))
        found = read_records(tmp_path / "run.jsonl")
        assert found[0].squared_step == 0.01
        assert len(geodiag.plot(found).axes) == 2

    def test_it_may_share_a_panel(self, register):
        pytest.importorskip("matplotlib")
        register(Quantity("top", measure=lambda o: 4.0, panel=CURVATURES, mark="dashes"))
        monitor, w = pair()
        _, curvatures, _ = geodiag.plot(run(monitor, w)).axes
        assert [4.0] * 3 in [line.get_ydata().tolist() for line in curvatures.get_lines()]
        assert "top" in [t.get_text() for t in curvatures.get_legend().get_texts()]

    @pytest.mark.parametrize("kind", [float, int, str])
    def test_one_that_fails_is_a_note(self, register, kind):
        def fails(observation):
            raise KeyError("no such")

        register(Quantity("odd", kind=kind, measure=fails), SQUARED)
        records = run(*pair())
        for record in records:
            assert note(record) == "odd: KeyError: 'no such'"
            assert str(record.odd) == {float: "nan", int: "0", str: ""}[kind]
            assert record.squared_step == pytest.approx(LR**2, rel=1e-12)
            assert record.sharpness == pytest.approx(4.0, rel=4e-4)

    def test_a_value_of_another_kind_is_a_note(self, register):
        register(Quantity("odd", measure=lambda o: "many"))
        (record,) = run(*pair(), steps=1)
        assert "odd: ValueError" in record.note
        assert math.isnan(record.odd)

    def test_the_user_can_still_stop(self, register):
        def stop(observation):
            raise KeyboardInterrupt

        register(Quantity("odd", measure=stop))
        monitor, _ = pair()
        monitor.before(0)
        with pytest.raises(KeyboardInterrupt):
            monitor.after({"x": np.zeros(3)})

    def test_of_a_step_that_was_not_seen_it_has_its_default(self, register, tmp_path):
        register(SQUARED)
        monitor, _ = pair(log=tmp_path / "run.csv")
        monitor.before(0)
        monitor.close()
        (record,) = read_records(tmp_path / "run.csv")
        assert math.isnan(record.squared_step)
        assert note(record) == "the step was not observed"

    def test_its_products_are_counted(self, register):
        def curvature(observation):
            d = observation.result.direction
            return dot(d, observation.oracle.hvp(d))

        plain = run(*pair())
        register(Quantity("again", measure=curvature))
        counted = run(*pair())
        assert [r.num_hvps - 1 for r in counted] == [r.num_hvps for r in plain]
        assert counted[-1].again == pytest.approx(counted[-1].sharpness, rel=1e-8)

    def test_what_it_is_called_with(self, register):
        """After the step: both points, both losses, the norm, the result, the oracle at w."""
        seen = []
        register(Quantity("odd", measure=lambda o: seen.append(o) or 0.0))
        monitor, w = pair()
        run(monitor, w, steps=1)
        (o,) = seen
        here, there = o.here["x"], o.there["x"]
        assert np.array_equal(there, here - LR * H @ here)
        assert o.known["loss"] == pytest.approx(0.5 * here @ H @ here)
        assert o.new_loss == pytest.approx(0.5 * there @ H @ there)
        assert float(o.norm.value({"x": here})) == pytest.approx(np.linalg.norm(here))
        assert o.result.value == monitor.records[0].sharpness
        assert np.array_equal(o.oracle.point()["x"], here)


class TestNames:
    def test_a_name_that_is_taken_names_both_owners(self):
        found = Registry(list)
        found.register(offering(Quantity("loss")), "mine")
        with pytest.raises(PluginError, match=r"two quantities .*'loss'.*geodiag, one of mine"):
            quantities(found)
        found = Registry(list)
        for owner in "ab":
            found.register(offering(SQUARED), owner)
        with pytest.raises(PluginError, match="one of a, one of b"):
            quantities(found)

    @pytest.mark.parametrize("answer", [None, SQUARED, ["loss"], {"loss": SQUARED}])
    def test_a_hook_that_returns_something_else(self, answer):
        class Plugin:
            @hookimpl
            def geodiag_quantities(self):
                return answer

        found = Registry(list)
        found.register(Plugin(), "odd")
        with pytest.raises(PluginError, match="'odd' must return a list of Quantity"):
            quantities(found)

    @pytest.mark.parametrize("name", ["", "a b", "_private", "1st", 3, None, "schema", "extras"])
    def test_a_name_that_no_log_could_hold(self, name):
        with pytest.raises(ArgumentError, match="name of a quantity"):
            Quantity(name)

    def test_no_quantity_can_hide_an_attribute_of_a_record(self):
        own = {name for name in dir(Record(1)) if not name.startswith("_")}
        for name in own - set(BUILT_IN):
            with pytest.raises(ArgumentError):
                Quantity(name)

    @pytest.mark.parametrize(
        "wrong", [{"kind": bool}, {"measure": 3}, {"panel": "loss"}, {"mark": "star"}]
    )
    def test_attributes_that_cannot_be_used(self, wrong):
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))}= of the quantity 'x'"):
            Quantity("x", **wrong)
        with pytest.raises(ArgumentError, match="unknown scale"):
            Panel(scale="cubic")


class TestBuiltIn:
    def test_every_field_is_a_quantity_with_a_label(self):
        assert [*quantities()][: len(BUILT_IN)] == [*BUILT_IN]
        for name, quantity in BUILT_IN.items():
            assert quantity.name == name
            assert quantity.label
            assert type(getattr(Record(1), name)) is quantity.kind

    def test_each_is_declared_once(self):
        """Neither logs, sinks, the page nor the table have a list of fields of their own."""
        packages = ("records", "sinks", "report")
        for path in (p for name in packages for p in (SOURCE / "geodiag" / name).rglob("*.py")):
            if path.name == "record.py":
                continue
            tree = ast.parse(path.read_text("utf-8"))
            texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
            assert len(texts & set(BUILT_IN)) <= 3, (
                path
            )  # marks of headers: "step", "run", and "note", a tag

    def test_another_field_takes_one_declaration(self, tmp_path):
        """In a copy of the library to which a line is added."""
        pytest.importorskip("matplotlib")
        source = tmp_path / "src"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SOURCE / "geodiag", source / "geodiag", ignore=ignore)
        file = source / "geodiag" / "records" / "record.py"
        text, mark = file.read_text("utf-8"), "    extras: dict[str, Any] = field"
        line = (
            '    added: float = _declared("added", panel=Panel(), measure=lambda o: o.new_loss / 2)'
        )
        assert text.count(mark) == 1
        file.write_text(text.replace(mark, f"{line}\n{mark}"), "utf-8")
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", ADDED],
            cwd=tmp_path,
            env={"PYTHONPATH": str(source), "COLUMNS": "200", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["added"]


ADDED = """
import numpy as np
import geodiag
from geodiag.report import watch

seen = []
w = np.array([1.0, -2.0, 3.0])
log = ["run.jsonl", "run.csv", seen.append]
with geodiag.Monitor(np.diag([4.0, 1.0, 0.5]), lr=0.1, every=1, log=log) as monitor:
    monitor.observe(0, {"x": w}, {"x": np.array([1.0, 0.0, 0.0])})
(record,) = seen
assert record.added == 1.0  # half of ½·4
assert record.extras == {}
for path in log[:2]:
    assert str(geodiag.read_records(path)) == str(seen)
*_, axes = geodiag.plot("run.csv").axes
print(axes.get_ylabel())
assert axes.get_lines()[0].get_ydata().tolist() == [1.0]
assert geodiag.sinks.metrics(record)["geodiag/added"] == 1.0
"""
