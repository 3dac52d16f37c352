"""``geodiag reproduce`` on tiny runs: what its numbers mean, and that finished cells are kept.

Truth: closed forms on quadratics, D from losses against D from Hessian-vector products (which
share no formula), and bytes written by hand.
"""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from geodiag.directional import directional_smoothness
from geodiag.errors import ArgumentError, DataError
from geodiag.experiments.reproduction import (
    cells,
    data,
    measuring,
    quadratics,
    results,
    runner,
    training,
)
from geodiag.records import Record
from tests.experiments.tiny_cells import DESCENTS, FRAMEWORKS, USED, flat, tiny, trainer

MODELS = list(cells.MODELS)


# What is learned


@pytest.mark.parametrize("model", MODELS)
def test_models_are_small(model):
    count = sum(w.size for w in data.task(model, None, 0).weights.values())
    assert 1000 < count <= 30_000


def test_the_next_character_is_the_target():
    x, y = data.characters()
    assert x.shape == y.shape == (data.SEQUENCES, data.CONTEXT)
    assert np.array_equal(x[:, 1:], y[:, :-1])
    assert np.array_equal(x[1:, 0], y[:-1, -1])


@pytest.mark.parametrize("model", MODELS)
def test_both_frameworks_have_the_same_loss_and_gradient(model):
    pytest.importorskip("jax")
    task = data.task(model, None, 0)
    ours, theirs = (trainer(f, model, task).problem.at() for f in FRAMEWORKS)
    # Two implementations in float64: rounding of sums of up to a thousand terms.
    assert float(ours.loss()) == pytest.approx(float(theirs.loss()), rel=1e-12)
    g, h = flat(ours.gradient()), flat(theirs.gradient())
    for name in task.weights:
        same = h[name].transpose(3, 2, 0, 1) if h[name].ndim == 4 else h[name]
        np.testing.assert_allclose(g[name], same, rtol=1e-9, atol=1e-12)


def test_cifar_is_read_from_its_binary_layout(tmp_path):
    labels, images = [3, 9, 0], np.random.default_rng(0).integers(0, 256, (3, 3072))
    for part in (0, 1):  # the first file holds one record, the second two
        chosen = slice(0, 1) if part == 0 else slice(1, 3)
        raw = b"".join(
            bytes([label]) + image.astype(np.uint8).tobytes()
            for label, image in zip(labels[chosen], images[chosen], strict=True)
        )
        (tmp_path / f"data_batch_{part + 1}.bin").write_bytes(raw)
    x, y = data.cifar10(tmp_path)
    assert x.shape == (3, 3, 8, 8)
    assert y.argmax(axis=1).tolist() == labels
    # Image 2's green plane, rows 4–7, columns 8–11, by the layout's own words: plane, row, column.
    square = [
        [images[i, 1024 + 32 * r + c] for r in range(4, 8) for c in range(8, 12)] for i in range(3)
    ]
    means = np.mean(square, axis=1)
    np.testing.assert_allclose(x[:, 1, 1, 2], (means - means.mean()) / means.std(), rtol=1e-6)
    task = data.task("cnn", tmp_path, 0)
    assert task.weights["conv1"].shape == (6, 3, 3, 3)
    assert sum(w.size for w in data.task("mlp", tmp_path, 0).weights.values()) <= 30_000


@pytest.mark.parametrize("content", [None, b"", b"x" * 3072, b"\x0b" + b"x" * 3072])
def test_what_is_not_cifar_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "data_batch_1.bin").write_bytes(content)
    with pytest.raises(DataError):
        data.cifar10(tmp_path)


# One cell


# JAX compiles for each norm, which takes long: one method stands for all, or two.
@pytest.mark.parametrize(
    ("framework", "method"),
    [
        *(("torch", m) for m in DESCENTS),
        ("jax", "gd"),
        pytest.param("jax", "muon", marks=pytest.mark.slow),
    ],
)
def test_every_method_on_the_mlp(framework, method):
    # lr: the loss falls by a share of itself that rounding does not hide.
    cell = tiny(framework, "mlp", method, lr=1e-3 if "signgd" in method else 5e-3)
    if "linf" in method:
        cell = dataclasses.replace(cell, lr=1e-4)
    rows = list(measuring.measured(cell, trainer(framework, "mlp")))
    kind = cells.METHODS[method]
    assert [record.step for record in rows] == [0, 3]
    for record in rows:
        extra = record.extras
        # From losses, and from Hessian-vector products along the step.
        d = record.directional_smoothness
        assert extra["quadrature"] == pytest.approx(d, rel=1e-7)
        assert extra["quadrature_error"] < 1e-9
        assert ("identity" in extra) == (not kind.normalized)
        assert extra.get("identity", 0.0) < 1e-8
        assert ("lambda_max" in extra) == (kind.norm in ("linf", "spectral"))
        edge = 2 / cell.lr * (record.dual_norm if kind.normalized else 1)
        assert record.threshold == pytest.approx(edge)
        assert record.ratio == pytest.approx(record.sharpness / edge)
        assert d <= record.sharpness * 1.05  # S is the largest curvature; the step is short
        # For a step of the method itself ζ is D in units of the threshold, without a loss.
        assert record.realized_edge == pytest.approx(extra["quadrature"] / edge, rel=1e-7)
        assert record.timing == pytest.approx(1.0, rel=1e-9)
        # The curvature is D but for the third derivative.
        assert record.ratio * record.occupation == pytest.approx(record.realized_edge, rel=0.1)
    assert rows[1].loss < rows[0].loss


@pytest.mark.parametrize("model", ["cnn", "transformer"])
def test_the_identity_holds_on_the_other_models(model):
    cell = tiny("torch", model, "spectral-gd", lr=1e-3, steps=2, measurements=1)
    (record,) = measuring.measured(cell, trainer("torch", model))
    assert record.identity < 1e-8
    assert record.quadrature == pytest.approx(record.directional_smoothness, rel=1e-7)


def test_the_identity_is_missed_by_a_wrong_step():
    """That it holds is no tautology: it fails for a step that is not the method's."""
    train = trainer("torch", "mlp")
    oracle = train.problem.at()
    g = oracle.gradient()
    dual = math.sqrt(sum(float((x * x).sum()) for x in g.values()))
    for factor, holds in ((1.0, True), (1.01, False)):
        moved = {name: -0.01 * factor * x for name, x in g.items()}
        d = float(directional_smoothness(oracle, moved, "l2"))
        assert (measuring.identity(oracle, moved, dual, d, 0.01) < 1e-8) == holds


def test_measured_steps_are_an_odd_number_apart():
    for steps in (10, 100, 1000, 1010):
        assert tiny("torch", "mlp", "gd", steps=steps, measurements=20).every % 2 == 1


def test_the_preconditioner_is_positive_with_mean_one():
    P = training.preconditioner({"a": np.array([0.0, -2.0]), "b": np.array([[6.0]])})
    # m = 8/3: (|g| + m)/(2m)
    np.testing.assert_allclose(P["a"], [0.5, 0.875])
    np.testing.assert_allclose(P["b"], [[1.625]])


# All cells


def test_keys_differ_where_any_setting_does():
    cell = tiny("torch", "mlp", "gd")
    others = {
        "framework": "jax", "method": "muon", "model": "cnn", "lr": 2e-3, "steps": 5,
        "measurements": 3, "seed": 1, "data": "other", "version": 0,
    }  # fmt: skip
    assert set(others) == {f.name for f in dataclasses.fields(cell)}
    keys = {dataclasses.replace(cell, **{name: x}).key for name, x in others.items()}
    assert len(keys | {cell.key}) == len(others) + 1


def test_every_cell_has_settings():
    wanted = {(a, b) for a in DESCENTS for b in cells.MODELS} | {(a, "mlp") for a in USED}
    assert set(cells.TRAININGS) == wanted


@pytest.mark.parametrize(
    "choice",
    [
        {"methods": ["adam"]},
        {"models": ["rnn"]},
        {"models": ["cnn"], "quick": True},
        {"methods": ["lion"], "models": ["cnn"]},
    ],
)
def test_unusable_choices_are_refused(choice, tmp_path):
    with pytest.raises(ArgumentError, match=r"adam|rnn|quick|lion"):
        runner.run(out=tmp_path / "out", **choice)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def short(monkeypatch):
    """Runs of a few steps."""
    for key in cells.TRAININGS:
        monkeypatch.setitem(cells.TRAININGS, key, cells.Training(1e-3, 5, 5))
    monkeypatch.setattr(quadratics, "NAMES", ("l2",))


@pytest.mark.slow
def test_finished_cells_are_kept_and_unfinished_ones_run_again(short, tmp_path, capsys):
    pytest.importorskip("torch")
    asked = {"methods": ["gd", "signgd"], "models": ["mlp"], "out": tmp_path}
    assert runner.run(**asked) == 0
    logs = sorted(tmp_path.glob("*.jsonl"))
    assert len(logs) == 2
    assert not list(tmp_path.glob("*.part"))
    for name in ("gd.png", "signgd.png", "quadratics.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in logs[0].read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0]["settings"]["steps"] == 5
    assert "gradient descent" in (tmp_path / "results.md").read_text()
    # One is lost: it alone is run again, to the same numbers.
    kept, lost = logs
    before, text = kept.stat().st_mtime_ns, lost.read_text()
    lost.unlink()
    assert runner.run(**asked) == 0
    assert kept.stat().st_mtime_ns == before
    again = [json.loads(line)["sharpness"] for line in lost.read_text().splitlines()]
    assert again == [json.loads(line)["sharpness"] for line in text.splitlines()]


@pytest.mark.slow
def test_a_cell_that_diverges_is_told_and_not_kept(short, monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    monkeypatch.setitem(cells.TRAININGS, ("gd", "mlp"), cells.Training(1e200, 9, 9))
    assert runner.run(methods=["gd"], models=["mlp"], out=tmp_path) == 1
    assert not list(tmp_path.glob("*.jsonl"))
    assert "not finished" in capsys.readouterr().out


def test_an_outcome_is_of_the_late_phase():
    cell = tiny("torch", "mlp", "gd", steps=100)
    records = [
        Record(s, loss=1.0 - s / 200, threshold=10.0, sharpness=4.0 + s / 10, ratio=0.4 + s / 100,
               directional_smoothness=5.0, realized_edge=0.5 if s % 2 else math.nan,
               occupation=s / 100, extras={"identity": s * 1e-12})
        for s in range(0, 100, 5)
    ]  # fmt: skip
    records[2].extras["quadrature"] = 5.5
    found = results.outcome(cell, records)
    assert found.early == pytest.approx(0.45)
    assert found.late == pytest.approx(1.275)  # the median of S at 80, 85, 90, 95, over 10
    assert found.growth == pytest.approx(1.275 / 0.45)
    assert found.late_zeta == (0.5, 0.5, 0.5)
    assert found.ascents == (2, 4)
    assert found.occupation == pytest.approx(0.875)
    assert found.timing == 1.0  # D/ζ is the threshold
    assert math.isnan(found.late_top)
    assert found.identity == pytest.approx(95e-12)
    assert found.quadrature == pytest.approx(0.5 / 5.5)
    assert found.sharpened
    assert found.at_the_edge


def test_tables_show_the_realized_edge():
    records = [
        Record(s, loss=1.0, sharpness=15.0, realized_edge=0.9, directional_smoothness=9.0,
               occupation=0.3, extras={"threshold_by_hand": 10.0, "realized_edge_batch": 0.4})
        for s in range(4)
    ]  # fmt: skip
    shown = results.table(
        [results.outcome(tiny("torch", "mlp", m), records) for m in ("gd", "lion")], {}
    )
    descent, used = (part for part in shown.split("###") if part.strip())
    assert "ζ late" in descent
    assert "| 1.500" in descent
    assert descent.count("| 0.900 (0.900–0.900)") == used.count("| 0.900 (0.900–0.900)") == 1
    assert "| 0.400 (0.400–0.400)" in used
    assert {c.method for c in runner.plan("torch", None, runner.QUICK, None, 0)} == {*cells.METHODS}


# Section 5


@pytest.fixture(scope="module")
def shown():
    return {q.norm: q for q in quadratics.quadratics(steps=200)}


def test_sharpness_of_the_quadratics_is_that_of_closed_forms(shown):
    H = quadratics.random_hessian(np.random.default_rng(0))
    n, w = quadratics.SIZE, 12  # the matrix's entries come first
    signs = 1 - 2 * ((np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1)
    truth = {
        "l2": np.linalg.eigvalsh(H)[-1],
        "linf": np.einsum("ij,jk,ik->i", signs, H, signs).max(),  # at a vertex, since H ≻ 0
        "block": max(np.linalg.eigvalsh(B)[-1] for B in (H[:w, :w], H[w:, w:])),
    }
    for name, S in truth.items():
        assert shown[name].sharpness == pytest.approx(S, rel=1e-10), name


def test_below_two_over_s_the_loss_falls_at_every_step(shown):
    for q in shown.values():
        assert q.worst_factor < 1, q.norm
        assert q.rate < 0.9, q.norm


def test_above_two_over_s_the_line_diverges_at_the_rate_of_the_theorem(shown):
    for q in shown.values():
        # (1 − ηS)² = (1 − 2.1)² exactly; rounding grows with the steps, of which there are 40.
        np.testing.assert_allclose(np.divide(q.above[1:], q.above[:-1]), 1.1**2, rtol=1e-9)
        assert q.above[-1] > 1000
