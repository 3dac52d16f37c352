"""Data and losses in the forms that people have them, against the dense Hessian of a regression."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
import geodiag_torch
from geodiag import errors
from geodiag.core.batch_forms import ONE_BATCH
from geodiag_torch.derivatives.batches import move
from tests.geodiag_torch.batch_objects import FORMS, Graphs, parts, tensors
from tests.geodiag_torch.models import regression
from tests.geodiag_torch.trainers import hide_torchvision

mse = nn.functional.mse_loss
ENGINES = ["auto", "graph", "recompute", "finite-difference"]


def top(hessian):
    return float(np.linalg.eigvalsh(hessian)[-1])


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_of_one_entry_is_a_scalar(shape, engine):
    """As backward() takes it."""
    model, data, h = regression()

    def loss(model, batch):
        return mse(model(batch[0]), batch[1]).reshape(shape)

    found = geodiag.sharpness(model, loss_fn=loss, data=data, engine=engine)
    assert found.value == pytest.approx(top(h), rel=1e-6)
    assert found.loss == pytest.approx(float(mse(model(data[0]), data[1]).detach()), rel=1e-12)
    model.weight.grad = None
    loss(model, data).backward()
    gradient = geodiag.problem(model, loss_fn=loss, data=data).at().gradient()
    torch.testing.assert_close(gradient["weight"], model.weight.grad)


def test_several_losses_are_still_refused():
    model, data, _ = regression()
    for loss in (lambda m, b: mse(m(b[0]), b[1]).repeat(2), lambda m, b: m(b[0]).sum(0)[:0]):
        with pytest.raises(errors.LossError, match="scalar"):
            geodiag.sharpness(model, loss_fn=loss, data=data)


def loss_of_parts(model, batch):
    x, y = parts(batch)
    return mse(model(x), y)


def made(form, x, y):
    if form in ("BatchEncoding", "ModelOutput"):
        hide_torchvision()
        pytest.importorskip("transformers")
    return FORMS[form](x, y)


@pytest.mark.parametrize("form", FORMS)
def test_one_batch_and_several_of_any_form(form):
    """Several are of different length, and count for what they hold."""
    model, (x, y), h = regression()
    one = made(form, x, y)
    found = geodiag.sharpness(model, loss_fn=loss_of_parts, data=one)
    assert found.value == pytest.approx(top(h), rel=1e-6)
    assert (ONE_BATCH in found.notes) == (form == "list")
    assert all(a is b for a, b in zip(parts(one), (x, y), strict=True))
    batches = [made(form, a, b) for a, b in zip(x.split(17), y.split(17), strict=True)]
    several = geodiag.sharpness(model, loss_fn=loss_of_parts, data=batches)
    assert several.value == pytest.approx(top(h), rel=1e-6)
    assert ONE_BATCH not in several.notes


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_moved_and_the_one_given_is_not(form):
    x, y = torch.ones(3, 2), torch.ones(3)
    batch = made(form, x, y)
    moved = move(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert [t.device.type for t in tensors(moved)] == ["meta", "meta"]
    assert all(a is b for a, b in zip(parts(batch), (x, y), strict=True))
    nested = move({"inner": [batch], "more": (batch, 1)}, torch.device("meta"))
    assert tensors(nested["inner"][0])[0].is_meta
    assert nested["more"][1] == 1


def test_a_packed_sequence_moves_itself():
    """Its lengths must stay in host memory."""
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    moved = move((packed,), torch.device("meta"))[0]
    assert moved.data.is_meta
    assert moved.batch_sizes.device.type == "cpu"


def test_a_list_from_a_loader_is_one_batch():
    """``next(iter(loader))`` is a list [x, y], for a criterion, a loss, the model's own, or [x]."""
    model, (x, y), h = regression()
    set_of_all = torch.utils.data.TensorDataset(x, y)
    batch = next(iter(torch.utils.data.DataLoader(set_of_all, batch_size=40)))
    assert isinstance(batch, list)
    for given in ({"criterion": mse}, {"loss_fn": loss_of_parts}):
        found = geodiag.sharpness(model, data=batch, **given)
        assert found.value == pytest.approx(top(h), rel=1e-6)
        assert ONE_BATCH in found.notes

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x, y):
            return {"loss": mse(self.net(x), y)}

    assert geodiag.sharpness(Own(), data=batch).value == pytest.approx(top(h), rel=1e-6)

    def loss_of_one(model, batch):
        (x,) = batch
        return mse(model(x), y)

    assert geodiag.sharpness(model, loss_fn=loss_of_one, data=[x]).value == pytest.approx(
        top(h), rel=1e-6
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = geodiag_torch.attach(optimizer, model, criterion=mse, data=batch, every=1)
    optimizer.step()
    assert monitor.records[0].sharpness == pytest.approx(top(h), rel=1e-3)
    assert ONE_BATCH in monitor.records[0].note


def test_two_examples_in_a_list_are_one_batch_although_a_part_could_be_unpacked():
    model, (x, y), h = regression(n=2)
    found = geodiag.sharpness(model, loss_fn=loss_of_parts, data=[x, y])
    assert found.value == pytest.approx(top(h), rel=1e-6)


def test_a_list_of_arrays_means_batches_where_the_loss_takes_them():
    model, (x, _), _ = regression()

    def loss(model, x):
        return model(x).square().mean()

    found = geodiag.sharpness(model, loss_fn=loss, data=[x[:17], x[17:]])
    whole = geodiag.sharpness(model, loss_fn=loss, data=(x,)[0])
    assert found.value == pytest.approx(whole.value, rel=1e-6)
    assert ONE_BATCH not in found.notes


def test_data_that_the_loss_takes_in_no_way():
    """No foreign error of unpacking, and the loss's own where that is to blame."""
    model, (x, y), _ = regression()

    def loss(model, batch):
        a, b, c = batch
        return mse(model(a), b) + c

    with pytest.raises(errors.DataError, match="pass one batch as a tuple") as caught:
        geodiag.sharpness(model, loss_fn=loss, data=[x, y])
    assert "not enough values" in str(caught.value)
    with pytest.raises(errors.LossError, match="scalar"):
        geodiag.sharpness(model, criterion=nn.MSELoss(reduction="none"), data=[x, y])


class Loader:
    """One of the user's own: arrays as attributes, shuffled by torch's generator."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        for i in torch.randperm(len(self.x)).split(16):
            yield self.x[i], self.y[i]


def test_a_loader_that_holds_its_arrays_is_a_loader():
    model, (x, y), h = regression()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = geodiag.sharpness(model, criterion=mse, data=Loader(x, y))
    assert torch.equal(torch.get_rng_state(), before)
    assert found.value == pytest.approx(top(h), rel=1e-6)
    assert ONE_BATCH not in found.notes


def test_objects_of_no_one_length_need_a_weight():
    """Nodes or graphs: which of them a loss averages over is not known."""
    model, (x, y), h = regression()
    halves = [
        Graphs(None, x=a, y=b, edges=torch.ones(2, 9)) for a, b in ((x[:9], y[:9]), (x[9:], y[9:]))
    ]
    with pytest.raises(errors.DataError, match="pass weight="):
        geodiag.sharpness(model, loss_fn=loss_of_parts, data=halves)
    found = geodiag.sharpness(
        model, loss_fn=loss_of_parts, data=halves, weight=lambda batch: len(batch.y)
    )
    assert found.value == pytest.approx(top(h), rel=1e-6)


def test_numpy_arrays_are_named():
    model, (x, y), _ = regression()
    for data in ((x.numpy(), y.numpy()), (x, y.numpy()), [(x.numpy(), y)]):
        with pytest.raises(errors.DataError, match=r"numpy\.ndarray.*torch\.as_tensor"):
            geodiag.sharpness(model, criterion=mse, data=data)

    def loss(model, batch):  # one that converts them by itself
        return mse(model(torch.from_numpy(batch[0])), torch.from_numpy(batch[1]))

    assert geodiag.sharpness(model, loss_fn=loss, data=(x.numpy(), y.numpy())).value > 0

    def broken(model, batch):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        geodiag.sharpness(model, loss_fn=broken, data=(x, y))


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, n, data):
        super().__init__()
        self.n, self.data = n, data

    def __iter__(self):
        x, y = self.data
        i = 0
        while self.n is None or i < self.n:
            yield x[i % len(x)], y[i % len(x)]
            i += 1


class Endless:
    """Its length is that of an epoch; its iterator has no end."""

    def __init__(self, batch, length=None):
        self.batch = batch
        if length is not None:
            self.length = length

    def __len__(self):
        if not hasattr(self, "length"):
            raise TypeError("unknown")
        return self.length

    def __iter__(self):
        while True:
            yield self.batch


def test_an_endless_loader_is_an_error():
    model, data, h = regression()
    stream = torch.utils.data.DataLoader(Stream(None, data), batch_size=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for endless in (stream, Endless(data), Endless(data, 5)):
        with pytest.raises(errors.DataError, match=r"does not end.*islice"):
            geodiag_torch.attach(optimizer, model, criterion=mse, data=endless)
    finite = torch.utils.data.DataLoader(Stream(40, data), batch_size=7)
    found = geodiag.sharpness(model, criterion=mse, data=finite)
    assert found.value == pytest.approx(top(h), rel=1e-6)


def shuffled(x, y, generator, kind):
    data, utils = torch.utils.data.TensorDataset(x, y), torch.utils.data
    if kind == "shuffle":
        return utils.DataLoader(data, 9, shuffle=True)
    if kind == "generator":
        return utils.DataLoader(data, 9, shuffle=True, generator=generator)
    if kind == "sampler":
        sampler = utils.RandomSampler(data, generator=generator)
        return utils.DataLoader(data, 9, sampler=sampler)
    sampler = utils.WeightedRandomSampler(torch.ones(len(x)), len(x), generator=generator)
    return utils.DataLoader(data, batch_sampler=utils.BatchSampler(sampler, 9, drop_last=True))


@pytest.mark.parametrize("kind", ["shuffle", "generator", "sampler", "batch sampler"])
def test_a_shuffling_loader_is_frozen_and_left_as_it_was(kind):
    """Even where other examples would be drawn: all passes are over those of its next pass."""
    model, (x, y), _ = regression()
    generator = torch.Generator().manual_seed(7)
    loader = shuffled(x, y, generator, kind)
    torch.manual_seed(5)
    expected = list(shuffled(x, y, torch.Generator().manual_seed(7), kind))
    torch.manual_seed(5)
    states = torch.get_rng_state(), generator.get_state()
    found = geodiag.sharpness(model, criterion=mse, data=loader)
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], generator.get_state())
    assert found.value == pytest.approx(
        geodiag.sharpness(model, criterion=mse, data=expected).value, rel=1e-9
    )


GENERATORS = {
    "PCG64": (lambda: np.random.default_rng(0), lambda g: g.bit_generator.state),
    "RandomState": (lambda: np.random.RandomState(0), lambda g: str(g.get_state())),
    "Random": (lambda: random.Random(0), lambda g: g.getstate()),
}


class OwnGenerator:
    """A loader that draws its examples from a generator of NumPy or Python."""

    def __init__(self, x, y, most, kind):
        make, self.state_of = GENERATORS[kind]
        self.data, self.most, self.rng = [(x, y)], most, make()

    def said(self):
        return self.state_of(self.rng)

    def __iter__(self):
        (x, y), order = self.data[0], list(range(40))
        self.rng.shuffle(order)
        for i in range(0, self.most, 10):
            yield x[order[i : i + 10]], y[order[i : i + 10]]


@pytest.mark.parametrize("kind", ["PCG64", "RandomState", "Random"])
def test_a_loader_with_a_generator_of_its_own(kind):
    """Each pass has the same examples, and the generator is left where it was."""
    model, (x, y), _ = regression()
    loader = OwnGenerator(x, y, 20, kind)
    before = loader.said()
    found = geodiag.sharpness(model, criterion=mse, data=loader, rtol=1e-6)
    assert loader.said() == before
    again = list(loader)
    assert loader.said() != before
    expected = geodiag.sharpness(model, criterion=mse, data=again, rtol=1e-6)
    assert found.value == pytest.approx(expected.value, rel=1e-6)
