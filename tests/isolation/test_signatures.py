"""``attach`` and both Monitors take the same arguments: names, defaults, types and order."""

from __future__ import annotations

import inspect
import re

import pytest

import geodiag
from geodiag.monitoring.monitor import Monitor

# What one of them has and another has not, or has with another default or type; and why.
ALLOWED = {
    "lr": "attach reads learning rates from the optimizer; JAX schedules return arrays",
    "norm": "None is the optimizer's own norm, which geodiag.Monitor does not know",
    "hyperparams": "optax states do not hold them; torch's parameter groups do",
    "loss_fn": "a problem argument; in JAX the loss is the first argument",
    "criterion": "a problem argument; in JAX the loss is the first argument",
    "data": "a problem argument, named where every user needs it",
    "where": "a problem argument, named where every user needs it",
}
FIRST = {"model", "loss", "optimizer", "self"}  # what is measured


def functions():
    torch, jax = pytest.importorskip("geodiag_torch"), pytest.importorskip("geodiag_jax")
    return {
        "geodiag.Monitor": (Monitor.__init__, Monitor),
        "geodiag_torch.attach": (torch.attach, torch.attach),
        "geodiag_jax.Monitor": (jax.Monitor.__init__, jax.Monitor),
    }


def arguments(function):
    return {
        name: (p.default, p.annotation)
        for name, p in inspect.signature(function).parameters.items()
        if name not in FIRST and p.kind is not p.VAR_KEYWORD
    }


def documented(thing) -> dict[str, str]:
    """The text of each argument in the Args section."""
    doc = inspect.getdoc(thing)
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", doc, re.MULTILINE).group(1)
    found = re.findall(r"^    (\*?\*?\w+): ((?:.|\n     )+)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def test_what_has_one_name_has_one_default_and_one_type():
    taken = {name: arguments(function) for name, (function, _) in functions().items()}
    for name in set().union(*taken.values()) - set(ALLOWED):
        assert all(name in each for each in taken.values()), name
        assert len({str(each[name]) for each in taken.values()}) == 1, name


def test_problem_arguments_have_the_defaults_of_problem():
    known = arguments(geodiag.problem)
    for name, (function, _) in functions().items():
        for each, (default, _) in arguments(function).items():
            assert each not in known or known[each][0] == default, (name, each)


def test_the_order_is_the_same():
    orders = [list(arguments(function)) for function, _ in functions().values()]
    for one in orders:
        for other in orders:
            assert [n for n in one if n in other] == [n for n in other if n in one]
    known = list(arguments(geodiag.problem))
    for one in orders:
        own = [n for n in one if n in known]
        assert own == sorted(own, key=known.index)


def test_every_argument_is_documented_and_takes_the_rest_as_problem_arguments():
    for name, (function, thing) in functions().items():
        parameters = inspect.signature(function).parameters
        expected = set(parameters) - {"self", "problem_arguments"} | {"**problem_arguments"}
        assert set(documented(thing)) == expected, name
        assert parameters["problem_arguments"].kind is inspect.Parameter.VAR_KEYWORD


def test_both_adapters_describe_what_they_share_alike():
    """Word for word, from ``budget`` on; ``geodiag.Monitor`` says more about each."""
    torch, jax = (documented(thing) for _, thing in list(functions().values())[1:])
    shared = ("budget", "log", "estimator", "max_hvps", "rtol", "certificate", "seed")
    assert [torch[n] for n in shared] == [jax[n] for n in shared]
