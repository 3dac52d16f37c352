"""Losses whose gradient is finite where double backward makes NaN, or where none exists.

Σ k w_k²/2 + 2‖v‖² has the Hessian diag(1, …, 6, 4, 4, 4). Each loss adds a term that vanishes
around the point (a norm of differences that are identically zero), so that this stays its Hessian;
or one that has no second derivative there. An error of differences is of the order of ε^{2/3}:
4e-11 in float64, 2e-5 in float32.
"""

import itertools

import pytest
import torch
from torch import nn

import geodiag
import geodiag_torch
from geodiag import errors

F = nn.functional
SCALE = torch.arange(1.0, 7.0).reshape(2, 3)
VANISHING = {
    "norm": lambda w, v: (w - w).norm(dim=-1),
    "a power of what where() leaves out": lambda w, v: torch.where(w > 9, (0 * w) ** 1.5, 0 * w),
    "normalize": lambda w, v: F.normalize(0 * w),
    "cosine_similarity": lambda w, v: F.cosine_similarity(0 * w, w + 1),
    "pairwise_distance": lambda w, v: F.pairwise_distance(w, w, eps=0.0),
    "atan2": lambda w, v: torch.atan2(0 * w, 0 * w),
    "matrix_norm": lambda w, v: torch.linalg.matrix_norm(w - w),
}

SINGULAR = {
    "a norm": lambda w, v: v.norm(),
    "a power": lambda w, v: v.abs() ** 1.5,
}


class Model(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.3, 1.2, 6, dtype=dtype).reshape(2, 3))
        self.v = nn.Parameter(torch.zeros(3, dtype=dtype))


def loss_of(term):
    return lambda m, _: (SCALE * m.w**2).sum() / 2 + 2 * (m.v**2).sum() + term(m.w, m.v).sum()


@pytest.mark.parametrize("term", VANISHING.values(), ids=VANISHING)
def test_a_vanishing_term_without_second_derivative_is_measured_by_differences(term):
    loss = loss_of(term)
    result = geodiag.sharpness(Model(), loss_fn=loss)
    assert result.value == pytest.approx(6.0, rel=1e-7)
    assert result.bound is geodiag.Bound.EXACT
    (note,) = result.notes
    assert "finite differences: other ones are not finite" in note
    step = {"w": torch.zeros(2, 3), "v": torch.ones(3)}
    along = geodiag.directional_smoothness(Model(), step, kind="curvature", loss_fn=loss)
    assert along == pytest.approx(4.0, rel=1e-7)


def test_what_the_first_try_spends_is_part_of_the_budget():
    counts = []
    for term, engine in ((VANISHING["norm"], "auto"), (lambda w, v: 0 * w, "finite-difference")):
        result = geodiag.sharpness(Model(), loss_fn=loss_of(term), engine=engine, max_hvps=4)
        counts.append(result.num_hvps)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("norm", ["linf", "spectral"])
def test_other_norms_and_precisions(norm):
    loss = loss_of(VANISHING["normalize"])
    model, plain = Model(torch.float32), loss_of(lambda w, v: 0 * w)
    want = geodiag.sharpness(model, norm, loss_fn=plain).value
    result = geodiag.sharpness(model, norm, loss_fn=loss)
    assert result.value == pytest.approx(want, rel=2e-3)
    assert result.num_hvps > 1


@pytest.mark.parametrize("engine", ["graph", "recompute"])
def test_an_engine_that_was_named_names_the_one_that_works(engine):
    loss = loss_of(VANISHING["normalize"])
    with pytest.raises(errors.NonFiniteError, match='engine="finite-difference"') as raised:
        geodiag.sharpness(Model(), loss_fn=loss, engine=engine)
    assert "diverged" not in str(raised.value)
    step = {"w": torch.zeros(2, 3), "v": torch.ones(3)}
    with pytest.raises(errors.NonFiniteError, match='engine="finite-difference"'):
        geodiag.directional_smoothness(Model(), step, kind="curvature", loss_fn=loss, engine=engine)
    failed = geodiag.sharpness(Model(), loss_fn=loss, engine=engine, throw=False)
    assert failed.status is geodiag.Status.NON_FINITE


def test_below_32_bits_there_are_no_differences_to_fall_back_to():
    loss = loss_of(VANISHING["normalize"])
    with pytest.raises(errors.NonFiniteError, match="in float32 or float64"):
        geodiag.sharpness(Model(torch.bfloat16), loss_fn=loss)


@pytest.mark.parametrize("term", SINGULAR.values(), ids=SINGULAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_claimed_where_there_is_no_second_derivative(term, dtype):
    model, loss = Model(dtype), loss_of(term)
    with pytest.raises(errors.NonFiniteError, match="no second derivative at this point"):
        geodiag.sharpness(model, loss_fn=loss)
    # Differences that were asked for depend on their step, which is said.
    asked = geodiag.sharpness(model, loss_fn=loss, engine="finite-difference")
    assert "another step moves the value" in asked.notes[-1]
    assert asked.bound is geodiag.Bound.LOWER
    assert asked.rounding > 0.5 * asked.value


def test_a_run_is_recorded_where_products_are_not_finite():
    model, loss = Model(), loss_of(VANISHING["normalize"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = geodiag_torch.attach(optimizer, model, loss_fn=loss, every=1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, None).backward()
        optimizer.step()
    for record in monitor.records:
        assert record.sharpness == pytest.approx(6.0, rel=1e-6)
        assert record.curvature == pytest.approx(record.directional_smoothness, rel=1e-6)
    assert "finite differences" in monitor.records[0].note


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_difference_across_a_kink_is_no_exact_value(norm):
    kink = torch.nn.Module()
    kink.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def loss(m, _):
        return 2 * (m.w**2).sum() + m.w.abs().sum()

    result = geodiag.sharpness(kink, norm, loss_fn=loss, engine="finite-difference")
    assert result.bound is geodiag.Bound.LOWER
    assert result.status is geodiag.Status.PRECISION
    assert "another step moves the value" in result.notes[-1]


@pytest.mark.parametrize("engine", ["graph", "finite-difference"])
def test_a_loss_that_changes_from_pass_to_pass_is_said(engine):
    model, count, plain = Model(), itertools.count(1), loss_of(lambda w, v: 0 * w)

    def measured():
        changing = lambda m, batch: plain(m, batch) * next(count)  # noqa: E731
        return geodiag.sharpness(model, loss_fn=changing, engine=engine)

    if engine == "finite-difference":
        with pytest.raises(errors.DataError, match="changes from pass to pass"):
            measured()
    else:
        result = measured()
        assert any("changes from pass to pass" in note for note in result.notes)
        assert result.bound is geodiag.Bound.LOWER  # of one pass alone
