"""Oracles around oracles: each forwards all that an Oracle offers, and programs run through it.

The truth is the matrix itself, and its submatrices.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

from geodiag.blocks import dot, flatten
from geodiag.norms import L2
from geodiag.oracles import CountingOracle, DelegatingOracle, MatrixOracle, MatrixProblem, Oracle
from geodiag.solvers import ravel
from geodiag.solvers.restriction import Restriction
from tests import truth

SHAPES = {"a": (2,), "W": (2, 3), "b": (3,)}
H = truth.symmetric(11, 0)
POINT = {n: np.random.default_rng(1).standard_normal(s) for n, s in SHAPES.items()}

WRAPPERS = {
    "delegating": DelegatingOracle,
    "counting": CountingOracle,
    "ravelled": lambda oracle: ravel.view(oracle, L2())[0],
    "part": Restriction(("a", "b")),
    "counted part": lambda oracle: CountingOracle(Restriction(("a", "b"))(oracle)),
}


class Products(NamedTuple):
    image: Any
    value: Any
    num_hvps: int


@dataclass(frozen=True)
class Product:
    """A program of two products."""

    name: str = "product"

    @property
    def key(self):
        return self.name

    def __call__(self, oracle, d):
        return Products(oracle.hvp(d), dot(d, oracle.hvp(d)), 2)


# How each part of an Oracle is asked for, with a direction d and a stack ds of the wrapper's own.
ASKED = {
    "free_hvps": lambda o, d, ds: o.free_hvps,
    "grow": lambda o, d, ds: o.grow,
    "gradient": lambda o, d, ds: o.gradient(),
    "gradient_at": lambda o, d, ds: o.gradient_at(d),
    "hvp": lambda o, d, ds: o.hvp(d),
    "hvps": lambda o, d, ds: o.hvps(ds),
    "in_float32": lambda o, d, ds: o.in_float32(),
    "independent_hvp": lambda o, d, ds: o.independent_hvp(d),
    "loop": lambda o, d, ds: o.loop(lambda k: k < 2, lambda k: k + 1, 0),
    "loss": lambda o, d, ds: o.loss(),
    "loss_at": lambda o, d, ds: o.loss_at(d),
    "matrix_view": lambda o, d, ds: o.matrix_view,
    "names": lambda o, d, ds: o.names,
    "notes": lambda o, d, ds: o.notes,
    "point": lambda o, d, ds: o.point(),
    "precision": lambda o, d, ds: o.precision,
    "run": lambda o, d, ds: o.run(Product(), d),
    "scan": lambda o, d, ds: o.scan(lambda k: (k + 1, (d,)), 0, 2),
    "shapes": lambda o, d, ds: o.shapes,
    "spare": lambda o, d, ds: o.spare(),
    "space": lambda o, d, ds: o.space,
    "surroundings": lambda o, d, ds: o.surroundings(),
    "steady": lambda o, d, ds: o.steady,
    "use_differences": lambda o, d, ds: o.use_differences(),
}
OFFERED = sorted({n for n in dir(Oracle) if n[0] != "_"} | set(Oracle.__annotations__))
OF_THE_SPACE = {"names", "shapes", "matrix_view"}


class Recording(MatrixOracle):
    """Remembers what of an Oracle was asked for."""

    def __init__(self):
        self.asked = set()
        super().__init__(lambda x: H @ x, MatrixProblem(H, SHAPES).space, POINT, free_hvps=True)

    def __getattribute__(self, name):
        if name in OFFERED:
            self.asked.add(name)
        return super().__getattribute__(name)

    def independent_hvp(self, d):
        return self.hvp(d)


@pytest.mark.parametrize("name", OFFERED)
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_everything_an_oracle_offers_is_forwarded(wrap, name):
    assert name in ASKED, f"say in ASKED how Oracle.{name} is asked for, and forward it"
    inner = Recording()
    wrapper = wrap(inner)
    d = {n: np.ones(s) for n, s in wrapper.shapes.items()}
    if name not in {"space", "free_hvps", "grow"}:  # these are read once, when it is made
        inner.asked.clear()
    answer = ASKED[name](wrapper, d, {n: np.stack([x, 2 * x]) for n, x in d.items()})
    if name in OF_THE_SPACE:
        assert answer == getattr(wrapper.space, name)
    else:
        assert name in inner.asked


def of_part(names, inner=None):
    return Restriction(names)(inner or MatrixProblem(H, SHAPES).at(POINT))


def entries(names):
    """The places of these tensors in the matrix."""
    ends = np.cumsum([0, 2, 6, 3])
    spans = dict(zip(SHAPES, itertools.pairwise(ends), strict=True))
    return np.concatenate([np.arange(*spans[n]) for n in names])


def test_a_part_is_a_submatrix():
    part, at = of_part(("a", "b")), entries(("a", "b"))
    rng = np.random.default_rng(2)
    d, e = ({"a": rng.standard_normal(2), "b": rng.standard_normal(3)} for _ in range(2))
    sub, x, w = H[np.ix_(at, at)], flatten(d), np.concatenate([p.ravel() for p in POINT.values()])
    np.testing.assert_allclose(flatten(part.hvp(d)), sub @ x, rtol=1e-12)
    np.testing.assert_allclose(flatten(part.point()), w[at])
    np.testing.assert_allclose(flatten(part.gradient()), (H @ w)[at], rtol=1e-12)
    stacked = part.hvps({n: np.stack([d[n], e[n]]) for n in d})
    for k, each in enumerate((d, e)):
        image = flatten({n: y[k] for n, y in stacked.items()})
        np.testing.assert_allclose(image, sub @ flatten(each), rtol=1e-12)
    moved = w.copy()
    moved[at] = x
    assert float(part.loss_at(d)) == pytest.approx(moved @ H @ moved / 2, rel=1e-12)
    np.testing.assert_allclose(flatten(part.gradient_at(d)), (H @ moved)[at], rtol=1e-12)


def test_a_ravelled_oracle_is_the_same_matrix():
    oracle = ravel.view(MatrixProblem(H, SHAPES).at(POINT), L2())[0]
    x = np.random.default_rng(3).standard_normal((2, 11))
    np.testing.assert_allclose(oracle.hvp({ravel.NAME: x[0]})[ravel.NAME], H @ x[0], rtol=1e-12)
    np.testing.assert_allclose(oracle.hvps({ravel.NAME: x})[ravel.NAME], x @ H, rtol=1e-12)


class Compiling(MatrixOracle):
    """Runs programs on another oracle, as a compiler's trace does, and keeps them as it does."""

    def __init__(self):
        super().__init__(lambda x: H @ x, MatrixProblem(H, SHAPES).space, POINT)
        self.compiled = {}

    def run(self, program, *arguments, asks=None):
        kept = self.compiled.setdefault((type(program), program.key), program)
        return kept(MatrixProblem(H, SHAPES).at(POINT), *arguments)


def test_programs_are_compiled_through_the_part():
    inner, counting = Compiling(), CountingOracle(of_part(("a", "b"), oracle := Compiling()))
    d, at = {"a": np.ones(2), "b": np.ones(3)}, entries(("a", "b"))
    answer = counting.run(Product(), d)
    np.testing.assert_allclose(flatten(answer.image), H[np.ix_(at, at)] @ np.ones(5), rtol=1e-12)
    assert counting.num_hvps == 2
    for names, name in ((("a", "b"), "product"), (("b",), "product"), (("a", "b"), "other")):
        for _ in range(2):
            of_part(names, inner).run(Product(name), {n: d[n] for n in names})
    assert len(inner.compiled) == 3  # by names and by program, once each
    assert len(oracle.compiled) == 1


def test_a_program_without_a_key_has_none_through_a_part():
    inner = Compiling()
    of_part(("b",), inner).run(Product(None), {"b": np.ones(3)})
    assert [key for _, key in inner.compiled] == [None]


def test_a_compiled_program_keeps_no_oracle():
    inner = Compiling()
    part = of_part(("b",), CountingOracle(inner))
    part.run(Product(), {"b": np.ones(3)})
    held = weakref.ref(part)
    del part
    gc.collect()
    assert held() is None
    assert inner.compiled


def test_eager_programs_count_at_every_level():
    outer = CountingOracle(of_part(("b",), middle := CountingOracle(MatrixProblem(H, SHAPES).at())))
    outer.run(Product(), {"b": np.ones(3)})
    assert (outer.num_hvps, middle.num_hvps) == (2, 2)
