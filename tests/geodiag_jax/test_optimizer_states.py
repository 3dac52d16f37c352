"""Optax states that tell no geometry, and steps that a state does not explain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

from geodiag import errors
from geodiag_jax import geometry
from geodiag_jax.optimizers.geometry import read_geometry
from geodiag_jax.pytree import read
from tests.geodiag_jax.optimizers import ADAPTIVE, LR, PARAMS, train


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

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
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


class TestQuestions:
    @pytest.mark.parametrize(
        ("transform", "got"),
        [
            (optax.sgd(LR), "a state without statistics"),
            (optax.sgd(LR, momentum=0.9), "TraceState"),
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
