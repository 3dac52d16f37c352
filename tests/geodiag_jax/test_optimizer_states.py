"""Optax states that tell no geometry, and steps that a state does not explain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

from geodiag import errors
from geodiag_jax import Monitor, geometry
from geodiag_jax.optimizers.geometry import read_geometry
from geodiag_jax.pytree import read
from tests.geodiag_jax.half import needs_float16
from tests.geodiag_jax.optimizers import (
    ADAPTIVE,
    LR,
    PARAMS,
    Step,
    gradient_of,
    loss,
    named,
    train,
)


class TestMismatch:
    """The step itself says whether the rule is the one that the state suggests."""

    def of(self, transform, steps=3, params=PARAMS, **hyperparams):
        step = train(transform, steps, params)
        found = read_geometry(step.state, read(params, None).space, LR, hyperparams, step.before)
        return found.compare(step.here, step.there, step.gradient).unknown

    @pytest.mark.parametrize("name", ADAPTIVE)
    def test_none(self, name):
        transform, hyperparams = ADAPTIVE[name]
        assert self.of(transform, **hyperparams) == ""

    def test_none_with_decay(self):
        assert self.of(optax.adamw(LR, weight_decay=1.0), weight_decay=1.0) == ""

    @pytest.mark.parametrize(
        "dtype", [jnp.float32, jnp.bfloat16, pytest.param(jnp.float16, marks=needs_float16)]
    )
    def test_none_by_rounding(self, dtype):
        params = jax.tree_util.tree_map(lambda x: x.astype(dtype), PARAMS)
        assert self.of(optax.adam(LR, eps=1e-4), params=params, eps=1e-4) == ""

    def test_a_step_of_nothing(self):
        transform = optax.MultiSteps(optax.adam(LR), 2)
        assert self.of(transform, steps=3) == "the optimizer did not move the parameters"

    @pytest.mark.parametrize(
        "transform",
        [
            optax.lamb(LR),
            optax.adam(1.2 * LR),
            optax.adam(LR, b1=0.5),
            optax.adamw(LR, weight_decay=1.0),
            optax.chain(optax.adam(LR), optax.clip_by_global_norm(1e-3)),
        ],
    )
    def test_some(self, transform):
        assert "the step differs from what" in self.of(transform)

    def test_the_state_before(self):
        transform = optax.adam(1.0)  # from side to side
        before, after = train(transform, 1), train(transform, 2)
        found = read_geometry(before.state, read(PARAMS, None).space, 1.0)
        assert found.compare(after.here, after.there).unknown


class TestScaled:
    """What scales or holds the states of others."""

    def steps(self, transform, count, **arguments):
        params, state = PARAMS, transform.init(PARAMS)
        for _ in range(count):
            before, here, gradient = state, params, gradient_of(params)
            updates, state = transform.update(gradient, state, params, **arguments)
            params = optax.apply_updates(params, updates)
            yield Step(before, state, named(here), named(params), named(gradient))

    @pytest.mark.parametrize(
        "transform", [optax.adam(LR), optax.inject_hyperparams(optax.adam)(LR)]
    )
    def test_a_plateau_halves_the_rate_of_what_precedes_it(self, transform):
        plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
        space = read(PARAMS, None).space
        chain = optax.chain(transform, plateau)
        for k, step in enumerate(self.steps(chain, 3, value=jnp.ones(()))):
            found = read_geometry(step.state, space, LR, before=step.before)
            assert found.compare(step.here, step.there, step.gradient).unknown == ""
            assert found.update().lr == pytest.approx(LR / 2**k)
        before_it = optax.chain(plateau, transform)  # Adam does not see a factor of its gradient
        *_, last = self.steps(before_it, 3, value=jnp.ones(()))
        assert read_geometry(last.state, space, LR, before=last.before).update().lr == LR

    @pytest.mark.parametrize(
        "transform",
        [
            optax.conditionally_transform(optax.adam(LR), lambda step: step >= 0),
            optax.chain(optax.add_noise(0.0, 0.0, jax.random.key(0)), optax.adam(LR)),
        ],
    )
    def test_states_around_adams(self, transform):
        step = train(transform, 3)
        found = read_geometry(step.state, read(PARAMS, None).space, LR, before=step.before)
        assert found.compare(step.here, step.there, step.gradient).unknown == ""

    def test_an_object_that_holds_the_state(self):
        class TrainState:
            opt_state = train(optax.adam(LR)).state

        assert geometry(TrainState(), PARAMS, lr=LR)[1].lr == LR


class TestPlain:
    """A state without statistics is that of descent in the norm that is asked for, or not."""

    def records(self, transform, norm="l2", lr=None, steps=3, **arguments):
        monitor = Monitor(loss, norm, lr=lr, every=1, engine="recompute")
        params, state = PARAMS, transform.init(PARAMS)
        for step in range(steps):
            updates, state = transform.update(gradient_of(params), state, params, **arguments)
            new = optax.apply_updates(params, updates)
            monitor.observe(step, params, new, state)
            params = new
        return monitor.records

    def test_rates_in_the_state(self):
        small = 1e-4
        plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
        chain = optax.chain(optax.inject_hyperparams(optax.sgd)(small), plateau)
        records = self.records(chain, value=jnp.ones(()))
        assert [r.threshold for r in records] == pytest.approx([2 / small, 4 / small, 8 / small])
        (record,) = self.records(optax.sgd(small), lr=small, steps=1)
        assert record.threshold == pytest.approx(2 / small)

    def test_lookahead_goes_back(self):
        small, params = 1e-4, optax.LookaheadParams.init_synced(PARAMS)
        transform = optax.lookahead(optax.sgd(small), 2, 0.5)
        monitor = Monitor(loss, "l2", lr=small, every=1, engine="recompute")
        state = transform.init(params)
        for step in range(3):
            updates, state = transform.update(gradient_of(params.fast), state, params)
            new = optax.apply_updates(params, updates)
            monitor.observe(step, params.fast, new.fast, state)
            params = new
        first, second, third = monitor.records
        assert [first.threshold, third.threshold] == pytest.approx([2 / small, 2 / small])
        assert "went back to its slow parameters" in second.note


class TestQuestions:
    @pytest.mark.parametrize(
        ("transform", "got"),
        [
            (optax.sgd(LR), "a state without statistics"),
            (optax.adafactor(LR), "FactoredState"),
            (optax.adabelief(LR), "ScaleByBeliefState"),
            (optax.contrib.schedule_free_adamw(LR), "ScheduleFreeState"),
            (
                optax.chain(optax.trace(0.9), optax.scale_by_adam()),
                "ScaleByAdamState with TraceState",
            ),
            (optax.chain(optax.scale_by_adam(), optax.scale_by_adam()), "two states for 'a.bias'"),
        ],
    )
    def test_not_known(self, transform, got):
        with pytest.raises(errors.ArgumentError, match="is not known") as e:
            geometry(transform.init(PARAMS), PARAMS)
        assert e.value.got == got
        assert 'norm="l2"' in str(e.value)

    def test_of_other_parameters(self):
        state = optax.adam(LR).init({"a": PARAMS["a"], "b": {"kernel": jnp.ones((5, 2))}})
        with pytest.raises(
            errors.ArgumentError, match=r"not that of 'b.kernel', of shape \(2, 5\)"
        ):
            geometry(state, PARAMS)
        masked = optax.masked(optax.adam(LR), {"a": True, "b": False}).init(PARAMS)
        with pytest.raises(errors.ArgumentError, match="nothing of this name"):
            geometry(masked, PARAMS)

    def test_before_the_first_step(self):
        with pytest.raises(errors.NormError, match=r"not known yet at .a\.bias."):
            geometry(optax.adam(LR).init(PARAMS), PARAMS)

    def test_without_a_gradient(self):
        transform, zero = optax.scale_by_adam(eps=0.0), {"w": jnp.zeros(2)}
        _, state = transform.update(zero, transform.init(zero))
        with pytest.raises(errors.NormError, match="not positive and finite at 'w'"):
            geometry(state, zero, hyperparams={"eps": 0})

    def test_kernels(self):
        params = {"k": jnp.ones((2, 2, 3))}
        dims = {"k": optax.contrib.MuonDimensionNumbers((0, 1), 2)}
        state = optax.contrib.muon(LR, muon_weight_dimension_numbers=dims).init(params)
        with pytest.raises(errors.ArgumentError, match="Muon's update of 'k' is not known"):
            geometry(state, params)

    @pytest.mark.parametrize(
        ("hyperparams", "match"),
        [
            ({"beta1": 0.9}, "names that mean nothing here"),
            ({"learning_rate": 0.1}, "the learning rate is lr="),
            ({"b1": "0.9"}, "must be a number"),
            ({"b1": None}, "must be a number"),
            ([0.9], "must be a dict"),
        ],
    )
    def test_hyperparams(self, hyperparams, match):
        state = train(optax.adam(LR)).state
        with pytest.raises(errors.ArgumentError, match=match):
            geometry(state, PARAMS, hyperparams=hyperparams)
