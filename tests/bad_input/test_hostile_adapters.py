"""What the fuzz suite (tests/fuzz) has found in the adapters, one row each.

Every row raised another exception than geodiag's once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import geodiag
import geodiag_jax
import geodiag_torch
from geodiag.errors import ArgumentError, DataError, GeodiagError, NormError, ParameterError

POINT = {"W": jnp.asarray([0.5, -1.0]), "b": jnp.asarray(1.0)}
X, Y = torch.ones(2, 2), torch.ones(2, 1)
ENDLESS: list = []
ENDLESS.append(ENDLESS)


def own_dict():
    found = {}
    found["x"] = found
    return found


def loss(params, *batch):
    return jnp.sum(params["W"] ** 2) + params["b"] ** 2


def loss_beside_an_endless_list(params):
    assert ENDLESS
    return jnp.sum(params["W"] ** 2)


def measure(params=POINT, **keywords):
    return geodiag.sharpness(loss, params=params, max_hvps=3, **keywords)


def measure_torch(**keywords):
    given = {"data": (X, Y), "criterion": nn.MSELoss()} | keywords
    return geodiag.sharpness(nn.Linear(2, 1), max_hvps=3, **given)


def descend(params, **keywords):
    return geodiag_torch.NonEuclideanGD(params, **{"lr": 0.1} | keywords)


def update(lr=0.1, grads=POINT):
    optimizer = geodiag_jax.non_euclidean_gd(lr, "l2")
    return optimizer.update(grads, optimizer.init(POINT))[0]


def attached(norm=None):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return geodiag_torch.attach(optimizer, model, norm, data=(X, Y), criterion=nn.MSELoss())


def observed(params):
    monitor = geodiag_jax.Monitor(loss, "l2")
    return monitor.observe(0, params, params)


STATE = optax.adam(0.1).init(POINT)

BAD = {
    "a point that holds itself": (lambda: measure(own_dict()), ParameterError),
    "a point whose keys cannot be sorted": (
        lambda: measure({1: jnp.ones(2), "W": jnp.ones(2)}),
        ParameterError,
    ),
    "a point of longer floats than JAX has": (
        lambda: measure({"W": np.ones(2, np.longdouble), "b": np.ones(())}),
        ParameterError,
    ),
    "a batch that holds itself": (lambda: measure(data=[[ENDLESS]]), DataError),
    "an observed point that holds itself": (lambda: observed(own_dict()), ParameterError),
    "a state's point that holds itself": (
        lambda: geodiag_jax.geometry(STATE, own_dict()),
        ParameterError,
    ),
    "gradients that hold themselves": (lambda: update(grads=own_dict()), ParameterError),
    "a state that holds itself": (lambda: geodiag_jax.geometry(ENDLESS, POINT), ArgumentError),
    "a tracked point that holds itself": (
        lambda: geodiag_jax.tracker(loss).init(own_dict()),
        ParameterError,
    ),
    "an engine that is an array": (lambda: measure(engine=np.ones(2)), ArgumentError),
    "memory without an end": (lambda: measure(memory=float("inf")), ArgumentError),
    "a batch of a tensor without values": (
        lambda: measure(data=(torch.ones(2, device="meta"),)),
        DataError,
    ),
    "a norm of the JAX Monitor that is an array": (
        lambda: geodiag_jax.Monitor(loss, np.ones(2)),
        GeodiagError,
    ),
    "a norm of attach that is an array": (lambda: attached(np.ones(2)), GeodiagError),
    "a length in another framework": (
        lambda: geodiag.sharpness(
            np.eye(3), geodiag.norms.FromFunctions(lambda d: torch.tensor(1.0), lambda g: g)
        ),
        NormError,
    ),
    "lr beyond a float": (lambda: update(10**400), ArgumentError),
    "lr that is complex": (lambda: update(1j), ArgumentError),
    "a schedule that answers an array": (lambda: update(lambda n: jnp.ones(2)), ArgumentError),
    "a schedule that answers a tensor": (lambda: update(lambda n: torch.ones(2)), ArgumentError),
    "normalized that is a text": (
        lambda: geodiag_jax.non_euclidean_gd(0.1, "l2", normalized="yes"),
        ArgumentError,
    ),
    "a learning rate of a state that is a function": (
        lambda: geodiag_jax.geometry(STATE, POINT, lr=len),
        ArgumentError,
    ),
    "a torch engine that is an array": (lambda: measure_torch(engine=np.ones(2)), ArgumentError),
    "kept graphs without an end": (lambda: measure_torch(memory=float("inf")), ArgumentError),
    "parameters that are a number": (lambda: descend(1), ParameterError),
    "parameters that are a text": (lambda: descend("x"), ParameterError),
    "a named parameter without a name": (lambda: descend(((),)), ParameterError),
    "a reduction without entries": (
        lambda: measure_torch(criterion=None, reduction=np.ones((3, 0))),
        ArgumentError,
    ),
    "no parameters": (lambda: descend([]), ParameterError),
    "parameters that are no leaves": (
        lambda: descend([nn.Linear(1, 1).weight * 2]),
        ParameterError,
    ),
    "torch's normalized that is an array": (
        lambda: descend(nn.Linear(1, 1).parameters(), normalized=np.ones(2)),
        ArgumentError,
    ),
    "a group that is a number": (
        lambda: descend(nn.Linear(1, 1).parameters()).add_param_group(0),
        ParameterError,
    ),
    "a group that is a tensor": (
        lambda: descend(nn.Linear(1, 1).parameters()).add_param_group(torch.ones(1)),
        ParameterError,
    ),
    "a group of texts": (
        lambda: descend(nn.Linear(1, 1).parameters()).add_param_group({"params": ["x"]}),
        ParameterError,
    ),
    "a state that is a tensor": (lambda: attached().load_state_dict(torch.ones(2)), ArgumentError),
    "a state with half a step": (
        lambda: (m := attached()).load_state_dict(m.state_dict() | {"steps": 0.5}),
        ArgumentError,
    ),
}


@pytest.mark.parametrize("label", BAD)
def test_a_geodiag_error(label):
    call, error = BAD[label]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, GeodiagError)


def test_globals_that_hold_themselves_do_no_harm():
    result = geodiag.sharpness(loss_beside_an_endless_list, params=POINT, where="W")
    assert result.value == pytest.approx(2.0, rel=1e-6)


def test_a_learning_rate_beyond_an_integer_of_jax():
    moved = update(10**30)
    assert jax.tree_util.tree_all(jax.tree_util.tree_map(lambda x: jnp.all(jnp.isfinite(x)), moved))


def test_a_groups_learning_rate_beyond_an_integer_of_torch():
    p = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = descend([{"params": [p], "lr": 10**30}])
    p.grad = torch.full((2,), 1e-30, dtype=torch.float64)
    optimizer.step()  # ‖g‖*·lmo(g) is g itself in l2
    assert torch.allclose(p.detach(), torch.zeros(2, dtype=torch.float64), atol=1e-12)
