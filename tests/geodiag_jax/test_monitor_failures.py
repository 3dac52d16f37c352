"""``geodiag_jax.Monitor`` misused, which raises at once, and failing later, which does not."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from geodiag import Update, errors
from tests.geodiag_jax.models import W, logistic, logistic_params
from tests.geodiag_jax.runs import DATA, LR, hessian_at, monitor_of, moved


class TestMisuse:
    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"norm": "l3"}, errors.UnknownNorm),
            ({"norm": 3}, errors.ArgumentError),
            ({"lr": -1.0}, errors.ArgumentError),
            ({"lr": "0.1"}, errors.ArgumentError),
            ({"lr": 0.1, "update": Update(0.1)}, errors.ArgumentError),
            ({"update": 0.1}, errors.ArgumentError),
            ({"data": []}, errors.DataError),
            ({"data": iter([DATA])}, errors.DataError),
            ({"engine": "graph"}, errors.ArgumentError),
            ({"memory": "1GB"}, errors.ArgumentError),
            ({"reduction": "max"}, errors.GeodiagError),
            ({"every": 0}, errors.ArgumentError),
            ({"budget": 2.0}, errors.ArgumentError),
            ({"rtol": 3.0}, errors.ArgumentError),
            ({"estimator": "newton"}, errors.GeodiagError),
            ({"log": 3}, errors.ArgumentError),
            ({"hyperparams": {"beta_1": 0.9}}, errors.ArgumentError),
            ({"params": {}}, errors.ArgumentError),
            ({"loss": None}, errors.ArgumentError),
        ],
        ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
    )
    def test_at_construction(self, arguments, error):
        with pytest.raises(error):
            monitor_of(**arguments)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"norm": None}, errors.ArgumentError, "no opt_state"),
            ({"norm": "muon"}, errors.NormError, "at least one matrix"),
            ({"where": "kernel"}, errors.ParameterError, "kernel"),
            ({"loss": lambda p, x, y: x @ p["w"]}, errors.LossError, "scalar"),
            ({"loss": lambda p: 0.0}, errors.LossError, "cannot be called"),
        ],
    )
    def test_at_the_first_step_due_or_not(self, arguments, error, match):
        monitor = monitor_of(every=1000, **arguments)
        for _ in range(2):  # and again
            with pytest.raises(error, match=match):
                monitor.observe(1, logistic_params(), logistic_params())
        with pytest.raises(error, match=match):
            monitor.before(1, logistic_params())
        assert monitor.records == []

    def test_a_state_that_is_not_known(self):
        params = logistic_params()
        with pytest.raises(errors.ArgumentError, match="geometry of this optimizer state"):
            monitor_of("auto").observe(0, params, params, optax.sgd(LR).init(params))

    def test_inside_jit(self):
        monitor = monitor_of()
        with pytest.raises(errors.ArgumentError, match=r"geodiag_jax\.tracker"):
            jax.jit(lambda p: monitor.observe(0, p, p) or p)(logistic_params())

    def test_donated_before_it_is_seen(self):
        params = logistic_params()
        for x in params.values():
            x.delete()
        with pytest.raises(errors.ArgumentError, match="donated"):
            monitor_of().observe(0, params, logistic_params())


class TestNothingIsRaisedLater:
    @pytest.fixture
    def monitor(self):
        monitor = monitor_of(lr=LR)
        monitor.observe(0, logistic_params(), moved(logistic_params()))
        return monitor

    @pytest.mark.parametrize(
        ("ends", "match"),
        [
            ((None, logistic_params()), "the parameters are missing"),
            ((logistic_params(), None), "the parameters are missing"),
            ((logistic_params(), {"w": jnp.ones(3)}), "ShapeError"),
            (({**logistic_params(), "w": jnp.full(4, jnp.nan)}, logistic_params()), "not finite"),
        ],
    )
    def test_but_noted(self, monitor, ends, match):
        assert match in monitor.observe(1, *ends).note

    def test_donated(self, monitor):
        params = logistic_params()
        params["w"].delete()
        assert "deleted" in monitor.observe(1, params, logistic_params()).note
        monitor.before(2, params)
        assert "deleted" in monitor.after(logistic_params()).note

    def test_a_state_left_out(self):
        params, transform = logistic_params(), optax.adam(LR)
        updates, state = transform.update(
            jax.grad(logistic)(params, *DATA), transform.init(params), params
        )
        new = optax.apply_updates(params, updates)
        monitor = monitor_of(None, lr=LR)
        assert monitor.observe(0, params, new, state).note == ""
        assert "no opt_state" in monitor.observe(1, params, new).note
        assert "is not known" in monitor.observe(2, params, new, optax.sgd(LR).init(params)).note

    def test_nan_at_the_first(self):
        params = {"w": jnp.full(4, jnp.nan), "b": jnp.zeros(())}
        record = monitor_of(lr=LR).observe(0, params, dict(params))
        assert math.isnan(record.sharpness)
        assert record.note

    def test_numpy_parameters_written_to_in_place(self):
        params = {"w": W.copy(), "b": np.asarray(0.3)}
        monitor = monitor_of(lr=LR)
        monitor.before(0, params)
        params["w"] += 0.1
        record = monitor.after(params)
        s = np.array([0, 0.1, 0.1, 0.1, 0.1])
        assert record.curvature == pytest.approx(s @ hessian_at(logistic_params()) @ s / (s @ s))
