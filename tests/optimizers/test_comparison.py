"""Steps and gradients that contradict the rule that is stated, and those that may follow it.

Each step is computed here from its formula, so what is stated of it is known to be true or false.
"""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from geodiag import norms
from geodiag.core.spaces import Space
from geodiag.optimizers import families
from geodiag.optimizers.comparison import OTHER_GRADIENT, UNKNOWN_GRADIENT, Comparison
from geodiag.optimizers.geometry import Geometry
from geodiag.optimizers.normalized import MuonDescent
from geodiag.optimizers.slots import Slot

rng = np.random.default_rng(7)
W, G, M0, V0 = ({"a": rng.standard_normal((5, 4)), "b": rng.standard_normal(6)} for _ in range(4))
M0 = {n: x / 3 for n, x in M0.items()}
V0 = {n: x**2 for n, x in V0.items()}
LR, B1, B2, EPS, T = 0.02, 0.9, 0.95, 1e-3, 12
FINE = Comparison()


def of(f, *trees):
    return {n: f(*(tree[n] for tree in trees)) for n in trees[0]}


def adam(g, told_nesterov=False, nesterov=False, decay=0.0, told=True, scale=1.0, **fields):
    """Slots after Adam's step along gradients ``g``, and the point there."""
    m = of(lambda x, y: B1 * x + (1 - B1) * y, M0, g)
    v = of(lambda x, y: B2 * x + (1 - B2) * y**2, V0, g)
    root = of(lambda x: np.sqrt(x / (1 - B2**T)) + EPS, v)
    along = of(lambda x: x / (1 - B1**T), m)
    if nesterov:  # Dozat's, as in optax
        along = of(lambda x, y: B1 * x / (1 - B1 ** (T + 1)) + (1 - B1) * y / (1 - B1**T), m, g)
    there = of(lambda w, a, r: w - scale * LR * (a / r + decay * w), W, along, root)
    slots = [
        Slot(n, families.Adam(), LR, B1, told_nesterov, steps=T, first_moment=m[n],
             earlier_moment=M0[n] if told else None, second_moment=v[n], second_decay=B2, eps=EPS,
             decoupled=True, **fields)
        for n in g
    ]  # fmt: skip
    return slots, there


def rmsprop(g, scale=1.0, momentum=0.0, nesterov=False, told_nesterov=False, decay=0.0):
    v = of(lambda x, y: B2 * x + (1 - B2) * y**2, V0, g)
    root = of(lambda x: np.sqrt(x + EPS), v)
    m = of(lambda x, y, r: momentum * x + y / r, M0, g, root)
    along = of(lambda x, y, r: momentum * x + y / r, m, g, root) if nesterov else m
    there = of(lambda w, a: w - scale * LR * (a + decay * w), W, along)
    slots = [
        Slot(n, families.RMSprop(), LR, momentum, told_nesterov, first_moment=m[n],
             earlier_moment=M0[n], second_moment=v[n], eps_in_root=EPS)
        for n in g
    ]  # fmt: skip
    return slots, there


def sgd(g, momentum=0.0, nesterov=False, told=None, scale=1.0, decay=0.0, told_decay=0.0):
    total = of(lambda x, w: x + decay * w, g, W)
    m = of(lambda x, y: momentum * x + y, M0, total)
    along = of(lambda x, y: momentum * x + y, m, total) if nesterov else m
    there = of(lambda w, a: w - scale * LR * a, W, along)
    told = momentum if told is None else told
    slots = [
        Slot(n, families.GradientDescent(), LR, told, nesterov, gradient=g[n],
             first_moment=m[n], weight_decay=told_decay)
        for n in g
    ]  # fmt: skip
    return slots, there


def compared(slots, there, gradient=G, **options):
    return Geometry(slots, Space.of(W)).compare(W, there, gradient, **options)


NOISY = of(lambda x, y: x + y, G, M0)


@pytest.mark.parametrize(
    "step",
    [
        adam(G),
        adam(G, nesterov=True, told_nesterov=True),
        adam(G, decay=0.5, weight_decay=0.5),
        rmsprop(G),
        rmsprop(G, momentum=0.9),
        rmsprop(G, momentum=0.9, nesterov=True, told_nesterov=True),
        sgd(G),
        sgd(G, momentum=0.9),
        sgd(G, momentum=0.9, nesterov=True),
        sgd(G, decay=0.1, told_decay=0.1),
    ],
)
def test_as_stated(step):
    assert compared(*step) == FINE


@pytest.mark.parametrize(
    "step", [adam(NOISY), rmsprop(NOISY), rmsprop(NOISY, momentum=0.5), sgd(NOISY, 0.9)]
)
def test_another_batch_is_no_fault(step):
    assert compared(*step) == Comparison("", OTHER_GRADIENT, seen=False)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (adam(G, scale=0.5), "differs from what state, lr and hyperparameters predict, by"),
        (adam(G, decay=0.5), "differs from what state, lr and hyperparameters predict, by"),
        (adam(G, nesterov=True), "the step is that of nesterov=True"),
        (adam(G, told_nesterov=True), "the step is that of nesterov=False"),
        (adam(NOISY, nesterov=True), "the step is that of nesterov=True"),
        (rmsprop(G, scale=0.5), "the step is 0.5 times what lr and the gradient predict"),
        (rmsprop(G, decay=0.5), "plus 0.5 times the weights"),
        (rmsprop(G, momentum=0.9, scale=0.5), "differs from what state, lr"),
        (rmsprop(G, momentum=0.9, nesterov=True), "differs from what state, lr"),
        (sgd(G, scale=0.5), "differs from what state, lr"),
        (sgd(G, momentum=0.9, told=0.0), "differs from what state, lr"),
        (sgd(G, decay=1.0), "differs from what state, lr"),
    ],
)
def test_another_rule(step, why):
    assert why in compared(*step).unknown


BEFORE = {
    "gradient plus 0.5 times the weights": of(lambda x, w: x + 0.5 * w, G, W),
    "0.1 times the measured loss's gradient plus 0.5": of(lambda x, w: x / 10 + w / 2, G, W),
    "gradient times 0.1 to 3, by tensor": {"a": 0.1 * G["a"], "b": 3 * G["b"]},
    "gradient with entries clipped at 0.4": of(lambda x: np.clip(x, -0.4, 0.4), G),
}


@pytest.mark.parametrize("factor", [0.1, 1024])
def test_a_factor_of_the_gradient(factor):
    """It divides the threshold; with a memory of gradients, as long as it lasts."""
    scaled = of(lambda x: factor * x, G)
    for rule in (adam, lambda g: rmsprop(g, momentum=0.9), lambda g: sgd(g, momentum=0.9), sgd):
        found = compared(*rule(scaled))
        assert found.scale == pytest.approx(factor)
        assert found.unknown == ""
        assert f"{factor} times the" in found.caveat
        assert ("lasted" in found.caveat) == (rule is not sgd)
    edge = geodiag.Update(0.1, momentum=0.9, scale=factor).threshold(None)
    assert float(edge) == pytest.approx(38 / factor)


@pytest.mark.parametrize("rule", [adam, lambda g: rmsprop(g, momentum=0.9), sgd])
@pytest.mark.parametrize("why", BEFORE)
def test_a_change_before_the_optimizer(why, rule):
    assert why in compared(*rule(BEFORE[why])).unknown


def test_a_gradient_that_nothing_shows():
    assert compared(*adam(G, told=False)).unknown == UNKNOWN_GRADIENT
    assert compared(*adam(G, told=False), gradient=None) == FINE


@pytest.mark.parametrize("told", ["a", "b"])
def test_rates_of_their_own(told):
    slots, there = adam(G)
    for s in slots:
        s.lr = 3 * LR if s.name == told else LR
    there = {n: W[n] + (3 if n == told else 1) * (x - W[n]) for n, x in there.items()}
    assert compared(slots, there) == FINE
    assert "differs" in compared(slots, of(lambda w, x: w + 3 * (x - w), W, there)).unknown


def test_a_step_of_nothing():
    assert "did not move" in compared(adam(G)[0], W).unknown
    # All of it is rounding, where the parameters are kept in 8 bits or so.
    assert compared(adam(G)[0], W, unit=0.5) == FINE


@pytest.mark.parametrize(
    "norm", [norms.L2(), norms.Linf(), norms.Spectral(), norms.SumOver(norms.L2())]
)
@pytest.mark.parametrize("normalized", [False, True])
def test_steepest_descent(norm, normalized):
    """By the definition of lmo: its inner product with g is the dual norm."""
    bound = norm.bind(Space.of(G))
    length = 1.0 if normalized else float(bound.dual(G))
    there = of(lambda w, d: w - LR * length * d, W, bound.lmo(G))
    slots = [Slot(n, families.SteepestDescent(norm, normalized, True), LR) for n in G]
    assert compared(slots, there) == FINE
    found = compared(slots, of(lambda w, x: w + 3 * (x - w), W, there))
    assert "the step is 3 times what lr and the gradient predict" in found.unknown
    assert not found.rate
    assert compared(slots, of(lambda w, m: w - LR * m, W, M0)).caveat == OTHER_GRADIENT
    changed = compared(slots, there, of(lambda x: 7 * x, G))  # the optimizer's was 1/7 of it
    assert (changed == FINE) == normalized


class TestMuon:
    def slots(self, **fields):
        family = MuonDescent()
        return [Slot("a", family, LR, gradient=G["a"], matrix=(5, 4), **fields)]

    def polar(self):
        u, _, vt = np.linalg.svd(G["a"], full_matrices=False)
        return u, vt

    def compared(self, singular, radius=1.25**0.5, extra=0.0, **fields):
        u, vt = self.polar()
        w = {"a": W["a"]}
        there = {"a": w["a"] - LR * (radius * u @ np.diag(singular) @ vt + extra * w["a"])}
        found = Geometry(self.slots(**fields), Space.of(w))
        return found.compare(w, there, {"a": G["a"]}).unknown

    def newton_schulz(self):
        x = np.linalg.svd(G["a"], compute_uv=False) / np.linalg.norm(G["a"])
        for _ in range(5):  # on the singular values
            x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
        return x

    def test_newton_schulz_and_the_polar_factor(self):
        assert self.compared(self.newton_schulz()) == ""
        assert self.compared(np.ones(4)) == ""

    @pytest.mark.parametrize(
        "other",
        [{"radius": 0.5 * 1.25**0.5}, {"radius": 1.0}, {"extra": 0.5}, {"rms": 0.2}],
    )
    def test_others(self, other):
        """Half the rate, the radius of the transposed matrix, decay, another scale."""
        assert "the step differs" in self.compared(self.newton_schulz(), **other)
