"""Checkpoints of JAX programs: msgpack, safetensors and orbax, told apart by names."""

from __future__ import annotations

import json

import flax.serialization
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

import geodiag
from geodiag.cli import main
from geodiag.errors import CheckpointError, ParameterError

TEMPLATE = {"a": {"w": jnp.ones(2)}, "b": [jnp.zeros(3)]}
SAVED = {"a": {"w": np.float32([2, 3])}, "b": [np.float32([1, 1, 1])]}


def loss(params, x):
    """½(w₀⁴x + w₁²) + ‖b‖²/2: a Hessian diag(6w₀²x, 1, 1, 1, 1)."""
    w = params["a"]["w"]
    return 0.5 * (w[0] ** 4 * x.mean() + w[1] ** 2) + 0.5 * jnp.sum(params["b"][0] ** 2)


S = 6 * 2**2
DATA = {"params": TEMPLATE, "data": (np.float32([1.0]),)}


def msgpack(tree, path):
    path.write_bytes(flax.serialization.to_bytes(tree))


def orbax(tree, path):
    with ocp.StandardCheckpointer() as writer:
        writer.save(path, tree)


def managed(tree, path):
    with ocp.CheckpointManager(path.parent / "run") as manager:
        manager.save(int(path.name), args=ocp.args.StandardSave({"params": tree, "step": 3}))


FLAT = {"a.w": SAVED["a"]["w"], "b.0": SAVED["b"][0]}
FORMATS = {
    "plain.msgpack": (msgpack, SAVED),
    "state.msgpack": (msgpack, {"params": SAVED, "step": 3, "opt_state": {"0": {"mu": SAVED}}}),
    "flat.safetensors": (save_file, FLAT),
    "orbax": (orbax, SAVED),
}


def test_each_format(tmp_path):
    for name, (save, tree) in FORMATS.items():
        save(tree, tmp_path / name)
    managed(SAVED, tmp_path / "5")
    paths = [*(tmp_path / name for name in FORMATS), tmp_path / "run" / "5"]
    records = geodiag.along(loss, paths, rtol=1e-6, **DATA)
    assert [r.sharpness for r in records] == [pytest.approx(S, rel=1e-5)] * len(paths)
    only = geodiag.along(loss, paths[:1], where="b", **DATA)  # w as in the checkpoint, not of today
    assert only[0].loss == pytest.approx(0.5 * (16 + 9 + 3), rel=1e-6)


BROKEN = {
    "missing": ({"a": SAVED["a"]}, "missing 'b.0'"),
    "extra": (SAVED | {"c": np.ones(1)}, "unexpected 'c'"),
    "shape": ({"a": {"w": np.ones(3)}, "b": SAVED["b"]}, "wrong shape at 'a.w'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_is_named(tmp_path, what):
    tree, words = BROKEN[what]
    msgpack(tree, tmp_path / "1.msgpack")
    with pytest.raises(CheckpointError) as e:
        geodiag.along(loss, [tmp_path / "1.msgpack"], **DATA)
    assert words in str(e.value)


@pytest.mark.parametrize("name", ["a.msgpack", "a.safetensors", "a.txt", "folder"])
def test_what_is_no_checkpoint(tmp_path, name):
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"\x93hello")
    with pytest.raises(CheckpointError):
        geodiag.along(loss, [tmp_path / name], **DATA)


def test_a_factory_of_jax(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jaxprobe.py").write_text(
        "from tests.checkpoints.test_jax_checkpoints import *\n"
        "def probe(): return TEMPLATE, loss, DATA['data']\n"
    )
    msgpack(SAVED, tmp_path / "ckpt4.msgpack")
    assert main(["measure", "jaxprobe:probe", "ckpt4.msgpack", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 4
    assert found["sharpness"] == pytest.approx(S, rel=1e-3)


def test_a_part_of_another_point_is_refused():
    part, whole = {"a.w": SAVED["a"]["w"]}, {"a.w": TEMPLATE["a"]["w"]}
    with pytest.raises(CheckpointError, match="nothing of 1 other arrays"):
        geodiag.along(loss, {1: part}, where="a", **DATA)
    (record,) = geodiag.along(loss, {1: whole}, where="a", rtol=1e-6, **DATA)  # where it is itself
    assert record.sharpness == pytest.approx(6)
    problem = geodiag.problem(loss, where="a", **DATA)
    with pytest.raises(ParameterError, match="the whole pytree"):
        geodiag.sharpness(problem, params=part)
