"""A plugin that is broken, whatever it raises, is named, and ends neither process nor training."""

from __future__ import annotations

import os
import signal
import threading
import warnings

import numpy as np
import pytest

import geodiag
from geodiag import hookimpl, norms, problems
from geodiag.errors import ArgumentError, PluginError, PluginWarning
from geodiag.plugins import Registry, builtin
from geodiag.records import Quantity
from tests.monitored import pair, run
from tests.plugins.test_registry import EntryPoint, offering, other_l2, registry


class Mute(Exception):
    """An error that cannot say what it is."""

    def __str__(self):
        raise ValueError


ENDS = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Mute(), MemoryError(), StopIteration()]
IDS = [type(e).__name__ for e in ENDS]


class Raising(EntryPoint):
    """A plugin whose import raises."""

    def load(self):
        self.loads += 1
        raise self.plugin


@pytest.mark.parametrize("thread", [False, True], ids=["main", "thread"])
@pytest.mark.parametrize("error", ENDS, ids=IDS)
def test_an_import_that_raises_anything_is_one_warning(error, thread):
    broken = Raising("broken", error)
    r, seen = registry(broken, EntryPoint("mine", offering(group=other_l2))), []

    def look_up():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            seen.extend("group" in r.norms() for _ in range(2))
        seen.extend(str(w.message) for w in caught if w.category is PluginWarning)

    before = signal.getsignal(signal.SIGINT)
    if thread:
        other = threading.Thread(target=look_up)
        other.start()
        other.join()
    else:
        look_up()
    assert seen[:2] == [True, True]
    (said,) = seen[2:]
    assert "'broken', broken_plugin (somebody)" in said
    assert type(error).__name__ in said
    assert broken.loads == 1
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def ctrl_c():
    """Python's own handler, which a process that was started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_during_an_import_reaches_the_user_and_the_plugin_loads_later(ctrl_c):
    class Slow(EntryPoint):
        def load(self):
            self.loads += 1
            if self.loads == 1:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(10**6):  # the handler runs between two of these
                    pass
            return self.plugin

    r = registry(Slow("slow", offering(group=other_l2)))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        r.norms()
    assert signal.getsignal(signal.SIGINT) is before
    assert "group" in r.norms()


def test_an_import_may_set_the_handler_of_ctrl_c():
    def own(number, frame): ...

    class Sets(EntryPoint):
        def load(self):
            signal.signal(signal.SIGINT, own)
            return self.plugin

    before = signal.getsignal(signal.SIGINT)
    try:
        registry(Sets("sets", offering())).norms()
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [e for e in ENDS if type(e) is not KeyboardInterrupt])
@pytest.mark.parametrize("hook", ["norms", "estimators", "quantities", "problem", "factory"])
def test_a_hook_that_raises_anything_names_its_plugin(hook, error, monkeypatch):
    def fails(*model):
        raise error

    class Plugin: ...

    r = registry()
    if hook == "factory":
        Plugin.geodiag_norms = hookimpl(lambda self: {"mine": fails})
    elif hook == "problem":
        Plugin.geodiag_problem = hookimpl(lambda self, model: fails())
    else:
        setattr(Plugin, f"geodiag_{hook}", hookimpl(lambda self: fails()))
    r.register(Plugin(), "broken")
    ask = {
        "norms": r.norms,
        "estimators": r.estimators,
        "quantities": lambda: geodiag.records.quantities(r),
        "problem": lambda: r.problem(np.eye(2), {}),
        "factory": lambda: r.norm("mine"),
    }[hook]
    for _ in range(2):
        with pytest.raises(PluginError, match=f"broken.*{type(error).__name__}") as caught:
            ask()
        assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ArgumentError("wrong data")])
def test_ctrl_c_and_errors_about_the_arguments_pass_a_problem_hook(error):
    class Plugin:
        @hookimpl
        def geodiag_problem(self, model):
            raise error

    r = registry()
    r.register(Plugin(), "mine")
    with pytest.raises(type(error)) as caught:
        r.problem(np.eye(2), {})
    assert caught.value is error


def test_what_an_own_adapter_meets_in_the_users_arguments_passes():
    """The user's function raised it, no plugin."""
    with pytest.raises(ZeroDivisionError):
        geodiag.problem(
            (lambda w: 0.0, lambda w: w), params={"x": np.ones(2)}, where=lambda name, x: 1 / 0
        )


def test_problems_of_a_plugin_are_asked_before_the_built_in_ones(monkeypatch):
    class Plugin:
        @hookimpl
        def geodiag_problem(self, arguments, model):
            return arguments["shapes"]

    r = registry()
    r.register(Plugin(), "mine")
    monkeypatch.setattr(problems, "registry", r)
    with pytest.raises(PluginError, match=r"must return a Problem or None.*dict"):
        geodiag.problem(np.eye(2), shapes={"x": (2,)})


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), Mute()])
def test_a_quantity_that_raises_anything_is_a_note(error, monkeypatch):
    def fails(observation):
        raise error

    quantity = Quantity("odd", measure=fails)
    monkeypatch.setattr("geodiag.monitoring.monitor.quantities", lambda: {"odd": quantity})
    records = run(*pair())
    assert len(records) == 3
    assert all("odd: " in r.note and type(error).__name__ in r.note for r in records)


class TestTakenNames:
    def taking(self, ask):
        """A plugin whose import registers a name that geodiag has."""

        class Taking(EntryPoint):
            def load(self):
                self.loads += 1
                ask(r)
                return self.plugin

        ep = Taking("taking", offering(group=other_l2))
        r = Registry(lambda: [ep])
        r.register(builtin, name="geodiag")
        return r, ep

    @pytest.mark.parametrize(
        ("ask", "said"),
        [
            (lambda r: r.register_norm("l2", norms.L1), "two norms have the name 'l2'"),
            (
                lambda r: r.register_estimator("ascent", geodiag.estimators.Lanczos),
                "two estimators have the name 'ascent'",
            ),
        ],
    )
    def test_every_look_up_says_so(self, ask, said):
        r, ep = self.taking(ask)
        for _ in range(3):
            for look_up in (r.norms, r.estimators, lambda: r.norm("linf")):
                with pytest.raises(PluginError, match=f"{said}. Got: one of geodiag, one of"):
                    look_up()
        assert ep.loads == 1

    def test_also_where_a_plugin_of_that_name_is_registered_by_hand(self):
        r = registry(EntryPoint("mine", offering(group=other_l2)))
        r.register(offering(other=other_l2), "mine")
        for _ in range(3):
            with pytest.raises(PluginError, match="two plugins have the name 'mine'"):
                r.norms()
