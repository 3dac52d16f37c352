"""The registry with entry points made up here: lazy frameworks, failures, clashes, near names."""

from __future__ import annotations

import inspect
import sys
import types
import warnings

import numpy as np
import pytest

import geodiag
from geodiag import Norm, estimators, hookimpl, norms, problems
from geodiag.errors import (
    ArgumentError,
    PluginError,
    PluginWarning,
    UnknownEstimator,
    UnknownModel,
    UnknownNorm,
)
from geodiag.plugins import Registry, builtin


class EntryPoint:
    """What importlib.metadata gives, as far as the registry looks."""

    def __init__(self, name, plugin, distribution="somebody", value=None):
        self.name, self.plugin, self.value = name, plugin, value or f"{name}_plugin"
        self.dist = None if distribution is None else types.SimpleNamespace(name=distribution)
        self.loads = 0

    def load(self):
        self.loads += 1
        if isinstance(self.plugin, Exception):
            raise self.plugin
        return self.plugin


def offering(**factories):
    """A plugin that registers these norms."""

    class Plugin:
        @hookimpl
        def geodiag_norms(self):
            return factories

    return Plugin()


def registry(*entry_points):
    found = Registry(lambda: list(entry_points))
    found.register(builtin, name="geodiag")
    return found


def other_l2():
    """Another ℓ2."""
    return norms.L2()


class OneStep(geodiag.SharpnessEstimator):
    """⟨d, Hd⟩ at the LMO of one Hessian-vector product, as in docs/plugins.md."""

    def estimate(self, oracle, norm, start=None, options=geodiag.estimators.Options()):
        m = geodiag.estimators.Measurement(oracle, norm, self, options)
        d = {name: x * 0 + 1 for name, x in oracle.point().items()}
        return m.finish(norm.lmo(m.oracle.hvp(d)), geodiag.Status.COMPLETED)


def test_a_plugins_norm_is_found_by_name_with_owner_and_summary():
    r = registry(EntryPoint("mine", offering(group=other_l2)))
    entry = r.norms()["group"]
    assert (entry.owner, entry.summary) == ("mine", "Another ℓ2.")
    assert isinstance(r.norm("group"), norms.L2)
    assert list(r.norms()) == sorted(r.norms())


def test_entry_points_load_once_and_at_the_first_look_up():
    ep = EntryPoint("mine", offering(group=other_l2))
    r = registry(ep)
    assert ep.loads == 0
    r.norms()
    r.norm("group")
    assert ep.loads == 1


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_frameworks_load_only_once_imported(name, monkeypatch):
    ep = EntryPoint(name, offering(group=other_l2))
    r = registry(ep)
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert "group" not in r.norms()
    assert ep.loads == 0
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert "group" in r.norms()
    assert ep.loads == 1


def test_a_plugin_that_fails_is_one_warning_and_the_rest_works():
    broken = EntryPoint("broken", ImportError("no module named absent"), "their-package")
    r = registry(broken, EntryPoint("mine", offering(group=other_l2)))
    with pytest.warns(PluginWarning, match=r"'broken', broken_plugin \(their-package\).*absent"):
        assert "group" in r.norms()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r.norms()
    assert broken.loads == 1


def test_two_plugins_with_one_name_names_both_owners():
    r = registry(
        EntryPoint("mine", offering(), "package-a", "a.plugin"),
        EntryPoint("mine", offering(), "package-b", "b.plugin"),
    )
    with pytest.raises(PluginError, match="two plugins have the name 'mine'") as caught:
        r.norms()
    assert "a.plugin (package-a)" in caught.value.got
    assert "b.plugin (package-b)" in caught.value.got


def test_one_entry_point_seen_twice_is_no_clash():
    """Metadata can list an editable install twice."""
    ep = EntryPoint("mine", offering(group=other_l2))
    assert "group" in registry(ep, ep).norms()


def test_an_entry_point_without_a_distribution():
    with pytest.warns(PluginWarning, match="unknown distribution"):
        registry(EntryPoint("odd", ImportError("x"), distribution=None)).norms()


def test_two_registered_plugins_with_one_name():
    r = registry()
    first, second = types.ModuleType("first"), types.ModuleType("second")
    r.register(first, name="same")
    r.register(first, name="same")  # again: nothing happens
    with pytest.raises(PluginError, match=r"two plugins have the name 'same'. Got: one of first"):
        r.register(second, name="same")


def test_two_plugins_with_one_norm():
    r = registry(EntryPoint("mine", offering(linf=other_l2)))
    with pytest.raises(PluginError, match="two norms have the name 'linf'") as caught:
        r.norms()
    assert "geodiag" in caught.value.got
    assert "mine" in caught.value.got


def test_register_norm():
    r = registry()
    r.register_norm("group", other_l2)
    r.register_norm("group", other_l2)  # again: nothing happens
    assert isinstance(r.norm("group"), norms.L2)
    assert "test_registry" in r.norms()["group"].owner
    with pytest.raises(PluginError, match="two norms have the name 'group'"):
        r.register_norm("group", lambda: norms.L1())
    with pytest.raises(PluginError, match=r"two norms have the name 'l2'. Got: one of geodiag"):
        r.register_norm("l2", other_l2)
    assert "group" not in registry().norms()


def test_a_plugin_that_comes_later_with_a_taken_name():
    r = registry()
    r.register_norm("group", other_l2)
    r.register(offering(group=norms.L1), name="late")
    with pytest.raises(PluginError, match="two norms have the name 'group'") as caught:
        r.norm("group")
    assert "late" in caught.value.got


@pytest.mark.parametrize(
    ("name", "factory", "said"),
    [
        ("", norms.L2, "non-empty string.*Got: ''"),
        (3, norms.L2, "non-empty string.*Got: 3"),
        ("auto", norms.L2, 'other than "auto"'),
        ("mine", norms.L2(), r"takes a factory.*Got: L2\(\)"),
    ],
)
@pytest.mark.parametrize("kind", ["norm", "estimator"])
def test_register_errors(kind, name, factory, said):
    with pytest.raises(ArgumentError, match=f"{kind}.*{said}"):
        getattr(registry(), f"register_{kind}")(name, factory)


def test_register_estimator():
    r = registry()
    r.register_estimator("mine", OneStep)
    r.register_estimator("mine", OneStep)  # a second time: nothing happens
    assert isinstance(r.estimator("mine"), OneStep)
    assert "test_registry" in r.estimators()["mine"].owner
    assert list(r.estimators()) == sorted(r.estimators())
    with pytest.raises(PluginError, match="two estimators have the name 'mine'"):
        r.register_estimator("mine", estimators.Ascent)
    with pytest.raises(PluginError, match="two estimators have the name 'lanczos'"):
        r.register_estimator("lanczos", OneStep)
    assert "mine" not in registry().estimators()


def test_a_registered_estimator_is_used_by_name():
    geodiag.register_estimator("test_registry.one_step", OneStep)
    assert "test_registry.one_step" in geodiag.available_estimators()
    H = np.diag([3.0, 1.0])
    result = geodiag.sharpness(H, "linf", estimator="test_registry.one_step")
    assert float(result) == 4.0  # at (1, 1): the sum of all entries
    assert "OneStep" in result.estimator


@pytest.mark.parametrize(
    ("asked", "near"), [("spectal", "'spectral'"), ("inf", "'linf'"), ("L2", "'l2'")]
)
def test_unknown_names_come_with_the_nearest(asked, near):
    with pytest.raises(UnknownNorm, match=f"Got: '{asked}'.*did you mean .*{near}") as caught:
        registry().norm(asked)
    assert "registered: block, frobenius, l1" in caught.value.do


def test_an_unknown_name_near_nothing():
    with pytest.raises(UnknownNorm) as caught:
        registry().norm("zzzzz")
    assert caught.value.do.startswith("registered: ")
    with pytest.raises(UnknownEstimator, match=r"no estimator.*Got: 'ascend'.*'ascent'"):
        registry().estimator("ascend")


@pytest.mark.parametrize(("kind", "name"), [("norm", "Norm"), ("estimator", "SharpnessEstimator")])
def test_a_factory_that_builds_something_else(kind, name):
    r = registry()
    getattr(r, f"register_{kind}")("number", lambda: 3.0)
    with pytest.raises(PluginError, match=rf"{kind} 'number'.*not a geodiag.{name}. Got: float"):
        getattr(r, kind)("number")


@pytest.mark.parametrize("answer", [None, ["l7"], {"l7": "not callable"}])
def test_a_hook_that_answers_something_else(answer):
    class Plugin:
        @hookimpl
        def geodiag_norms(self):
            return answer

    r = registry(EntryPoint("odd", Plugin()))
    with pytest.raises(PluginError, match="plugin 'odd' must return a dict of name → factory"):
        r.norms()


def test_problems_go_to_the_first_plugin_that_recognises_the_model():
    class Short:
        @hookimpl
        def geodiag_problem(self, model):
            return "answer" if model == "mine" else None

    class Full:
        @hookimpl
        def geodiag_problem(self, model, arguments):
            return arguments["data"] if model == "with data" else None

    r = registry(EntryPoint("short", Short()), EntryPoint("full", Full()))
    assert r.problem("mine", {}) == "answer"
    assert r.problem("with data", {"data": [1]}) == [1]
    assert r.problem("other", {}) is None


def test_a_plugin_gets_all_arguments_of_problem_at_their_defaults(monkeypatch):
    taken = {}

    class Plugin:
        @hookimpl
        def geodiag_problem(self, model, arguments):
            taken.update(arguments)

    monkeypatch.setattr(problems, "registry", registry(EntryPoint("mine", Plugin())))
    with pytest.raises(UnknownModel):
        geodiag.problem(object(), data=[1])
    expected = {
        name: p.default
        for name, p in inspect.signature(geodiag.problem).parameters.items()
        if name != "model"
    }
    assert taken == expected | {"data": [1]}


def test_built_in_names():
    found = registry()
    assert set(found.norms()) == {
        "block", "frobenius", "l1", "l2", "linf", "muon", "nuclear", "preconditioned", "rms",
        "spectral",
    }  # fmt: skip
    assert all(entry.summary for entry in found.norms().values())
    assert issubclass(type(found.norm("l2")), Norm)
    for name in ("ascent", "frank_wolfe", "lanczos", "blockwise", "enumerate"):
        assert found.estimator(name).estimate


def test_a_definition_that_was_run_again_replaces_itself():
    """As when a notebook's cell is run twice: a new class of the same module and name."""
    space: list[dict] = [{"__name__": "notebook"}, {"__name__": "notebook"}]
    for names in space:
        exec("from geodiag import norms\nclass Mine(norms.L2): pass", names)
    r = Registry(list)
    for names in space:
        r.register_norm("mine", names["Mine"])
    assert type(r.norm("mine")) is space[1]["Mine"]
    with pytest.raises(PluginError, match="two norms have the name 'mine'"):
        r.register_norm("mine", norms.L1)


def test_a_plugin_registered_by_hand_may_be_found_as_an_entry_point_too():
    plugin = types.ModuleType("by_hand")
    r = Registry(lambda: [EntryPoint("entry", plugin)])
    r.register(plugin)
    assert r.norms() == {}


def test_a_hook_that_raises_names_its_plugin():
    class Broken:
        @hookimpl
        def geodiag_norms(self):
            raise KeyError("missing")

    r = Registry(list)
    r.register(Broken(), name="broken")
    with pytest.raises(PluginError, match=r"'broken' failed in geodiag_norms.*KeyError"):
        r.norms()


def test_a_hook_of_a_wrong_signature_is_left_out_with_a_warning():
    class Wrong:
        @hookimpl
        def geodiag_norms(self, extra):
            return {}

    r = Registry(lambda: [EntryPoint("wrong", Wrong())])
    with pytest.warns(PluginWarning, match="'wrong'"):
        r.norms()
    assert r.norms() == {}
