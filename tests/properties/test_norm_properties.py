"""Properties of every registered norm and of random compositions, on random blocks.

Tolerances: a value is a sum, maximum or singular value of n ≤ 13 entries, exact to about n·ε·10 ≈
3e-14 relative; 1e-12 covers compositions of three. Entries are 0 or between 1e-3 and 1e3 in size.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import geodiag
from geodiag import norms
from geodiag.core.spaces import Space
from geodiag.plugins import registry

TOL = 1e-12
SHAPES = {"W": (2, 3), "V": (2, 2), "b": (2,), "s": ()}
NAMES = sorted(set(geodiag.available_norms()) - {"preconditioned"})

few = settings(max_examples=100, deadline=None, derandomize=True, database=None)

entries = st.one_of(
    st.just(0.0), st.floats(1e-3, 1e3), st.floats(-1e3, -1e-3), st.sampled_from([1.0, -1.0])
)
blocks = st.fixed_dictionaries(
    {n: arrays(np.float64, s, elements=entries) for n, s in SHAPES.items()}
)
factors = st.floats(1e-3, 1e3)
names = st.sampled_from(NAMES)

P = {n: np.linspace(0.5, 3.0, int(np.prod(s))).reshape(s) for n, s in SHAPES.items()}

radii = st.one_of(
    st.none(), st.floats(0.1, 10.0), st.fixed_dictionaries({"W|V": st.floats(0.1, 10.0)})
)
leaves = st.one_of(
    names.map(registry.norm),
    st.builds(norms.Spectral, radii),
    st.just(norms.Preconditioned(P)),
)
# Norms of one tensor (or of any number), to be put under an Over.
inner = st.sampled_from([norms.L2(), norms.L1(), norms.Linf(), norms.Spectral(), norms.Nuclear()])
over = st.sampled_from([norms.MaxOver, norms.SumOver, norms.L2Over])
whole = st.one_of(
    leaves,
    st.builds(lambda kind, norm, r: kind(norm, radii=r), over, inner, radii),
    st.builds(
        lambda first, rest, kind, r: norms.ByParameter(
            {"W|b": first, ".": rest}, over=kind, radii={".": r}
        ),
        st.sampled_from([norms.L2(), norms.Linf(), norms.SumOver(norms.L2())]),
        st.sampled_from([norms.Spectral(), norms.L1(), norms.L2Over(norms.Linf())]),
        over,
        st.floats(0.1, 10.0),
    ),
)
compositions = st.one_of(whole, st.builds(norms.Scaled, whole, st.floats(0.1, 10.0)))


def dot(a, b):
    return float(sum(np.vdot(a[n], b[n]) for n in a))


def cancelling(a, b):
    """Σ|a_i b_i|: what the rounding of ⟨a, b⟩ is relative to."""
    return float(sum(np.abs(a[n] * b[n]).sum() for n in a))


def times(c, d):
    return {n: c * x for n, x in d.items()}


def bound(norm):
    return norm.bind(Space.of({n: np.zeros(s) for n, s in SHAPES.items()}))


@few
@given(compositions, blocks, factors)
def test_absolute_homogeneity(norm, d, c):
    norm = bound(norm)
    one = float(norm.value(d))
    assert float(norm.value(times(c, d))) == pytest.approx(c * one, rel=TOL)
    assert float(norm.value(times(-c, d))) == pytest.approx(c * one, rel=TOL)


@few
@given(compositions, blocks)
def test_positive_away_from_zero(norm, d):
    norm = bound(norm)
    value = float(norm.value(d))
    assert (value > 0.0) == any(np.any(x) for x in d.values())
    assert float(norm.value(times(0.0, d))) == 0.0


@few
@given(compositions, blocks, blocks)
def test_triangle_inequality(norm, a, b):
    norm = bound(norm)
    both = float(norm.value({n: a[n] + b[n] for n in a}))
    parts = float(norm.value(a)) + float(norm.value(b))
    assert both <= parts * (1 + TOL)


@few
@given(compositions, blocks)
def test_hoelder_equality_at_the_lmo(norm, g):
    norm = bound(norm)
    best = norm.lmo(g)
    assert float(norm.value(best)) <= 1 + TOL
    slack = TOL * cancelling(g, best)
    assert dot(g, best) == pytest.approx(float(norm.dual(g)), rel=TOL, abs=slack)


@few
@given(compositions, blocks, blocks)
def test_hoelder_inequality_elsewhere(norm, g, d):
    norm = bound(norm)
    bound_by = float(norm.dual(g)) * float(norm.value(d))
    assert abs(dot(g, d)) <= bound_by * (1 + TOL) + TOL * cancelling(g, d)


@few
@given(compositions, blocks, factors)
def test_the_dual_of_a_scaled_norm_is_divided(norm, g, c):
    plain, scaled = bound(norm), bound(norms.Scaled(norm, c))
    assert float(scaled.value(g)) == pytest.approx(c * float(plain.value(g)), rel=TOL)
    assert float(scaled.dual(g)) == pytest.approx(float(plain.dual(g)) / c, rel=TOL)
    assert float(scaled.value(scaled.lmo(g))) <= 1 + TOL


@few
@given(compositions, blocks, factors)
def test_the_lmo_does_not_see_the_scale(norm, g, c):
    norm = bound(norm)
    best = norm.lmo(g)
    other = dot(g, norm.lmo(times(c, g)))
    assert other == pytest.approx(dot(g, best), rel=TOL, abs=TOL * cancelling(g, best))


@few
@given(names, blocks, st.permutations(range(3)), st.permutations(range(2)))
def test_permuting_rows_columns_and_entries(name, d, cols, rows):
    """Every registered norm is invariant under permutations within a tensor; its LMO follows."""
    norm = bound(registry.norm(name))

    def permuted(x):
        return x | {"W": x["W"][np.ix_(rows, cols)], "b": x["b"][list(rows)]}

    assert float(norm.value(permuted(d))) == pytest.approx(float(norm.value(d)), rel=TOL)
    assert float(norm.dual(permuted(d))) == pytest.approx(float(norm.dual(d)), rel=TOL)
    turned, best = permuted(d), permuted(norm.lmo(d))
    slack = TOL * cancelling(turned, best)
    assert dot(turned, best) == pytest.approx(float(norm.dual(d)), rel=TOL, abs=slack)


@few
@given(names.filter(lambda name: name not in ("l1", "linf")), blocks)
def test_orthogonal_changes_of_basis(name, d):
    """Norms of singular values do not see rotations of rows; nor does ℓ2 of anything."""
    norm = bound(registry.norm(name))
    c, s = np.cos(0.7), np.sin(0.7)
    turned = d | {"W": np.array([[c, -s], [s, c]]) @ d["W"]}
    assert float(norm.value(turned)) == pytest.approx(float(norm.value(d)), rel=TOL)


@few
@given(blocks)
def test_order_of_the_norms(d):
    """Comparisons that hold for all d: the maximum, ℓ2 and the sum over the same parts."""
    value = {name: float(bound(registry.norm(name)).value(d)) for name in NAMES}
    chains = [
        ("linf", "l2", "l1"),
        ("linf", "spectral", "frobenius", "l2", "block", "nuclear", "l1"),
        ("rms", "linf"),
        ("muon", "spectral"),
    ]
    for chain in chains:
        for small, large in itertools.pairwise(chain):
            assert value[small] <= value[large] * (1 + TOL), (small, large)


vectors = arrays(np.float64, 13, elements=st.floats(-3.0, 3.0))


@settings(few, max_examples=40)
@given(compositions, vectors, st.floats(0.1, 10.0))
def test_scaling_laws_of_the_sharpness(norm, v, c):
    """S(cL) = c·S(L), and S under r‖·‖ is S/r²; H = v vᵀ, where S = ‖v‖*²."""
    H = np.outer(v, v)
    g = dict(zip(SHAPES, np.split(v, [6, 10, 12]), strict=True))
    g = {n: g[n].reshape(SHAPES[n]) for n in SHAPES}
    S = float(bound(norm).dual(g)) ** 2
    estimator = geodiag.estimators.FrankWolfe(iterations=2, restarts=1)

    def measured(matrix, in_norm):
        return geodiag.sharpness(matrix, in_norm, shapes=SHAPES, estimator=estimator).value

    # ⟨d, Hd⟩ rounds relative to ‖v‖₁²·max d²; radii and factors go up to 10.
    slack = TOL * 1e4 * float(np.abs(v).sum()) ** 2
    assert measured(H, norm) == pytest.approx(S, rel=TOL, abs=slack)
    assert measured(c * H, norm) == pytest.approx(c * S, rel=TOL, abs=c * slack)
    assert measured(H, norms.Scaled(norm, c)) == pytest.approx(S / c**2, rel=TOL, abs=slack / c**2)
