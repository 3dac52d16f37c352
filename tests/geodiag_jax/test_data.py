"""Data in the forms that people have them, against a linear regression's dense Hessian, 2XᵀX/n."""

from __future__ import annotations

import dataclasses
from collections import UserDict, namedtuple
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
import geodiag_jax
from geodiag import errors
from geodiag.core.batch_forms import ONE_BATCH

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 3)), RNG.standard_normal(12)
TOP = float(np.linalg.eigvalsh(2 / 12 * X.T @ X)[-1])
PARAMS = {"w": jnp.zeros(3)}
Pair = namedtuple("Pair", ["x", "y"])


def loss(params, x, y):
    return jnp.mean((x @ params["w"] - y) ** 2)


def loss_of_dict(params, batch):
    return loss(params, batch["x"], batch["y"])


def loss_of_object(params, batch):
    return loss(params, batch.x, batch.y)


def measured(data, loss=loss, **arguments):
    return geodiag.sharpness(loss, params=PARAMS, data=data, rtol=1e-6, **arguments)


@dataclasses.dataclass
class Unknown:
    x: object
    y: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Known:
    x: object
    y: object


@dataclasses.dataclass(frozen=True)
class Hashable:
    """Its arrays would be constants of the compiled function."""

    x: object
    y: object

    def __hash__(self):
        return 0


FORMS = {
    "tuple": (loss, lambda x, y: (x, y)),
    "list": (loss, lambda x, y: [x, y]),
    "list of jax arrays": (loss, lambda x, y: [jnp.asarray(x), jnp.asarray(y)]),
    "namedtuple": (loss, Pair),
    "UserDict": (loss_of_dict, lambda x, y: UserDict(x=x, y=y)),
    "registered dataclass": (loss_of_object, Known),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_batch_and_several_of_any_form(form):
    f, make = FORMS[form]
    found = measured(make(X, Y), f)
    assert found.value == pytest.approx(TOP, rel=1e-6)
    assert (ONE_BATCH in found.notes) == form.startswith("list")
    several = measured([make(X[:5], Y[:5]), make(X[5:], Y[5:])], f)
    assert several.value == pytest.approx(TOP, rel=1e-6)
    assert ONE_BATCH not in several.notes


@pytest.mark.parametrize("kind", [Unknown, Hashable, lambda x, y: SimpleNamespace(x=x, y=y)])
def test_an_object_that_jax_does_not_know_is_named(kind):
    for data in (kind(X, Y), [kind(X, Y)], (kind(X, Y),)):
        with pytest.raises(errors.DataError, match=r"does not know as a pytree.*register"):
            measured(data, loss_of_object)


def test_tensors_of_torch_are_converted():
    torch = pytest.importorskip("torch")
    x, y = torch.tensor(X), torch.tensor(Y)
    assert measured((x, y)).value == pytest.approx(TOP, rel=1e-6)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5)
    assert measured(loader).value == pytest.approx(TOP, rel=1e-6)
    assert measured(next(iter(loader))).value > 0
    assert measured((x.bfloat16(), y)).value == pytest.approx(TOP, rel=0.02)
    for bad in (x.clone().requires_grad_(), x.to_sparse()):
        with pytest.raises(errors.DataError, match="cannot be read"):
            measured((bad, y))


def test_a_monitor_of_a_list():
    monitor = geodiag_jax.Monitor(loss, norm="l2", data=[X, Y], lr=0.1, every=1)
    new = {"w": PARAMS["w"] - 0.1 * jax.grad(loss)(PARAMS, X, Y)["w"]}
    record = monitor.observe(0, PARAMS, new)
    assert record.sharpness == pytest.approx(TOP, rel=1e-3)
    assert ONE_BATCH in record.note


def test_a_list_that_the_loss_takes_in_no_way():
    def unpacks(params, batch):
        x, y, z = batch
        return loss(params, x, y) + z

    with pytest.raises(errors.LossError, match=r"cannot be called.*a list"):
        measured([X, Y], unpacks)


def test_a_list_of_arrays_means_batches_where_the_loss_takes_them():
    def square(params, x):
        return jnp.mean((x @ params["w"]) ** 2)

    found = measured([X[:5], X[5:]], square)
    assert found.value == pytest.approx(TOP, rel=1e-6)
    assert ONE_BATCH not in found.notes


class Endless:
    def __iter__(self):
        while True:
            yield X, Y


def test_an_endless_loader_is_an_error():
    with pytest.raises(errors.DataError, match=r"does not end.*islice"):
        measured(Endless())


def test_targets_that_a_loss_leaves_out_are_said():
    y = np.where(np.arange(12) % 4 == 0, -100, 1)

    def masked(params, x, y):
        kept = y != -100
        return jnp.sum(jnp.where(kept, (x @ params["w"] - y) ** 2, 0.0)) / jnp.sum(kept)

    batches = [(X[:5], y[:5]), (X[5:], y[5:])]
    assert any("targets of -100" in note for note in measured(batches, masked).notes)
    exact = measured(batches, masked, weight=lambda batch: np.sum(batch[1] != -100))
    kept = X[y != -100]
    assert exact.value == pytest.approx(np.linalg.eigvalsh(2 / 9 * kept.T @ kept)[-1], rel=1e-6)
    assert not exact.notes


class OwnGenerator:
    """A loader that shuffles by a generator of its own."""

    def __init__(self, most):
        self.most, self.rng = most, np.random.default_rng(0)

    def __iter__(self):
        order = self.rng.permutation(12)
        for i in range(0, self.most, 4):
            yield X[order[i : i + 4]], Y[order[i : i + 4]]


def test_a_shuffling_loader():
    """Each pass has the same examples, and the generator is left where it was."""
    loader = OwnGenerator(8)
    before = loader.rng.bit_generator.state
    found = measured(loader)
    assert loader.rng.bit_generator.state == before
    assert found.value == pytest.approx(measured(list(loader)).value, rel=1e-6)
    assert measured(OwnGenerator(12)).value == pytest.approx(TOP, rel=1e-6)
