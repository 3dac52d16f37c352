"""Checkpoints of torch models: measured as if loaded; what is no checkpoint is said.

The truth is the top eigenvalue of the dense float64 Hessian of the model with the file loaded.
"""

from __future__ import annotations

import copy
import json
import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file

import geodiag
from geodiag.cli import main
from geodiag.errors import ArgumentError, CheckpointError, GeodiagError
from tests.geodiag_torch.test_state_dicts import MSE, X, Y, net, top_eigenvalue, trained

OPTIONS = {"criterion": MSE, "data": (X, Y), "rtol": 1e-7}


def directory(state, path):
    """As Hugging Face writes a model in two parts."""
    path.mkdir()
    names = list(state)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for part, inside in parts.items():
        save_file({n: state[n].contiguous() for n in inside}, path / part)
    index = {"weight_map": {n: part for part, inside in parts.items() for n in inside}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


FORMATS = {
    "plain.pt": torch.save,
    "run.ckpt": lambda s, p: torch.save({"state_dict": s, "epoch": 3, "optimizer": {"lr": 1}}, p),
    "ddp.bin": lambda s, p: torch.save({"model": {f"module.{k}": x for k, x in s.items()}}, p),
    "model.safetensors": save_file,
    "folder": directory,
}


@pytest.fixture
def saved(tmp_path):
    model, state, loaded = trained(net)
    return model.eval(), state, loaded.eval(), tmp_path


def test_each_format_is_measured_as_if_it_were_loaded(saved):
    model, state, loaded, folder = saved
    before = copy.deepcopy(model.state_dict())
    for name, save in FORMATS.items():
        save(state, folder / name)
    records = geodiag.along(model, [folder / name for name in FORMATS], **OPTIONS)
    expected = pytest.approx(top_eigenvalue(loaded), rel=1e-6)
    assert [r.sharpness for r in records] == [expected] * len(FORMATS)
    assert records[0].loss == pytest.approx(MSE(loaded(X), Y).item(), rel=1e-12)
    assert all(torch.equal(x, before[k]) for k, x in model.state_dict().items())


def test_a_log_resumes(saved, monkeypatch):
    model, state, _, folder = saved
    paths = [str(folder / f"step_{n}.pt") for n in (100, 20, 300)]
    for factor, path in enumerate(paths, 1):
        torch.save({k: x * factor for k, x in state.items()}, path)
    log = folder / "run.jsonl"
    whole = geodiag.along(model, paths, ["l2", "linf"], **OPTIONS)
    assert [(r.step, r.norm) for r in whole[:3]] == [(20, "l2"), (20, "linf"), (100, "l2")]
    first = geodiag.along(model, paths[:2], ["l2", "linf"], log=log, **OPTIONS)
    seen = []
    again = geodiag.along(model, paths, ["l2", "linf"], log=log, progress=seen.append, **OPTIONS)
    assert len(seen) == 2
    assert again == geodiag.along(model, paths, ["l2", "linf"], log=log, **OPTIONS)
    strip = [(r.step, r.norm, r.sharpness) for r in whole]
    assert [(r.step, r.norm, r.sharpness) for r in again] == strip
    assert [r.run for r in again[:4]] == [r.run for r in first]
    runs = geodiag.read_runs(log)
    assert [(r.label, len(r)) for r in runs] == [("l2", 3), ("linf", 3)]
    assert runs[0].header["model"] == "Sequential"
    geodiag.along(model, paths[:1], ["l2"], log=log, seed=1, **OPTIONS)  # another search
    assert [len(r) for r in geodiag.read_runs(log)] == [3, 3, 1]
    geodiag.along(model, paths[:1], log=log, mode="w", **OPTIONS)
    assert [len(r) for r in geodiag.read_runs(log)] == [1]


@pytest.mark.parametrize("kind", ["file", "directory", "memory", "in bfloat16"])
def test_a_checkpoint_that_was_written_again_is_measured_again(saved, kind):
    model, state, _, folder = saved
    other = {k: 2 * x for k, x in state.items()}

    def written(state):
        if kind == "memory":
            return {5: state, 7: model.state_dict()}
        if kind == "in bfloat16":
            return {5: {k: x.bfloat16() for k, x in state.items()}, 7: model.state_dict()}
        path = folder / "step_5"
        path.mkdir(exist_ok=True)
        torch.save(state, path / "pytorch_model.bin")
        return [path] if kind == "directory" else [path / "pytorch_model.bin"]

    def measured():
        seen = []
        options = {**OPTIONS, "log": folder / "run.jsonl", "progress": seen.append}
        return geodiag.along(model, points, **options)[0].sharpness, len(seen)

    points = written(state)
    first, count = measured()
    assert count == len(points)
    assert measured() == (first, 0)
    points = written(other)
    expected = geodiag.along(model, points, **OPTIONS)[0].sharpness
    assert expected != first
    assert measured() == (expected, 1)
    assert measured() == (expected, 0)
    assert len(geodiag.read_runs(folder / "run.jsonl")) == 1


def test_points_in_memory_and_steps(saved):
    model, state, _, folder = saved
    by_step = geodiag.along(model, {7: state, 9: model.state_dict()}, **OPTIONS)
    assert [r.step for r in by_step] == [7, 9]
    for name in ("a1.pt", "b1.pt"):  # the same number: their places
        torch.save(state, folder / name)
    found = geodiag.along(model, [folder / "b1.pt", folder / "a1.pt"], **OPTIONS)
    assert [r.step for r in found] == [0, 1]
    bad = dict(state, **{"0.weight": state["0.weight"] * float("nan")})
    (record,) = geodiag.along(model, [bad], **OPTIONS)
    assert record.sharpness != record.sharpness
    assert record.status == "NON_FINITE"
    assert record.note


class Bomb:
    def __reduce__(self):
        return (open, ("boom", "w"))


BROKEN = {
    "missing": (
        lambda s, p: torch.save({k: x for k, x in s.items() if k != "0.bias"}, p),
        "'0.bias'",
    ),
    "extra": (lambda s, p: torch.save(s | {"head": X}, p), "unexpected 'head'"),
    "shape": (lambda s, p: torch.save(s | {"0.bias": X}, p), "'0.bias'"),
    "pickle": (lambda s, p: p.write_bytes(pickle.dumps(Bomb())), "as tensors alone"),
    "torch pickle": (lambda s, p: torch.save({"a": Bomb()}, p), "as tensors alone"),
    "module": (lambda s, p: torch.save(net(), p), "as tensors alone"),
    "text": (lambda s, p: p.write_text("hello"), "as tensors alone"),
    "empty": (lambda s, p: p.write_bytes(b""), "as tensors alone"),
    "no state": (lambda s, p: torch.save({"epoch": 1}, p), "a dict with epoch"),
    "a list": (lambda s, p: torch.save([X], p), "holds no state_dict"),
    "absent": (lambda s, p: None, "no such checkpoint"),
    "a folder": (lambda s, p: p.mkdir(), "none of model.safetensors"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_is_one_sentence(saved, what, monkeypatch):
    model, state, _, folder = saved
    monkeypatch.chdir(folder)
    make, words = BROKEN[what]
    torch.save(state, folder / "1.pt")
    make(state, folder / "2.pt")
    with pytest.raises(CheckpointError) as e:
        geodiag.along(model, ["1.pt", "2.pt"], log="run.jsonl", **OPTIONS)
    assert words in str(e.value)
    assert "\n" not in str(e.value)
    assert not (folder / "boom").exists()
    if what != "absent":  # whole records, of what was measured before
        assert [r.extras["checkpoint"] for r in geodiag.read_records("run.jsonl")] == ["1.pt"]


@pytest.mark.parametrize("name", ["x.safetensors", "x.txt", "x.json"])
def test_other_files(saved, name):
    model, _, _, folder = saved
    (folder / name).write_text("{}")
    with pytest.raises(CheckpointError):
        geodiag.along(model, [folder / name], **OPTIONS)


@pytest.mark.parametrize("part", ["../a.safetensors", "/etc/passwd", 3])
def test_an_index_names_files_beside_it_alone(saved, part):
    model, _, _, folder = saved
    index = json.dumps({"weight_map": {"0.bias": part}})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="names no files"):
        geodiag.along(model, [folder], **OPTIONS)


@pytest.mark.parametrize(
    ("checkpoints", "norms"),
    [([], ["l2"]), (3, ["l2"]), ({"a": {}}, ["l2"]), ([{}], []), ([{}], ["l2", "l2"])],
)
def test_other_arguments(saved, checkpoints, norms):
    with pytest.raises(ArgumentError):
        geodiag.along(saved[0], checkpoints, norms, **OPTIONS)


FACTORY = """
import torch
from tests.geodiag_torch.test_state_dicts import MSE, X, Y, net
def probe(): return net().eval(), MSE, (X, Y)
def named(): return {"model": net().eval(), "criterion": MSE, "data": (X, Y)}
def other(): return 3
def pair(): return net(), MSE
def odd(): return {"model": net(), "colour": 1}
def fails(): raise ValueError("no data\\nhere")
def numbers(): return 1, 2, 3
"""


def test_the_command_makes_a_table_a_log_and_a_figure(saved, monkeypatch, capsys):
    _, state, loaded, folder = saved
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "probes", raising=False)
    (folder / "probes.py").write_text(FACTORY)
    for n in (1, 2):
        torch.save(state, f"ckpt{n}.pt")
    given = ["ckpt1.pt", "ckpt2.pt", "--log", "run.jsonl", "-o", "figure.svg"]
    assert main(["measure", "probes:probe", *given, "--norm", "l2", "--norm", "linf"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["checkpoint", "norm", "step", "loss"]
    assert [line.split()[:3] for line in lines[1:5]] == [
        [f"ckpt{n}.pt", norm, str(n)] for n in (1, 2) for norm in ("l2", "linf")
    ]
    assert "4/4 ckpt2.pt, linf" in err
    assert "figure.svg" in lines[5]
    assert (folder / "figure.svg").read_text("utf-8").count("<svg") == 1
    assert main(["measure", "probes:named", *given[:4], "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # the log had all of it
    assert json.loads(out.splitlines()[0])["sharpness"] == pytest.approx(
        top_eigenvalue(loaded), rel=1e-3
    )
    for factory, words in {
        "probes": "package.module:function",
        "nowhere:f": "cannot be imported",
        "probes:nothing": "cannot be imported",
        "probes:X": "cannot be called",
        "probes:other": "returns something else",
        "probes:pair": "returns something else",
        "probes:numbers": "returns something else",
        "probes:odd": "other names",
        "probes:fails": "ValueError: no data here",
    }.items():
        assert main(["measure", factory, "ckpt1.pt", "--log", "new.jsonl"]) == 2, factory
        err = capsys.readouterr().err
        assert words in err, factory
        assert err.count("\n") == 1
        assert "Traceback" not in err
    assert main(["measure", "probes:probe", "ckpt1.pt", "-o", "figure.gif"]) == 2
    assert not (folder / "new.jsonl").exists()


def test_problems_without_checkpoints_say_so(tmp_path):
    (tmp_path / "a.pt").write_text("")
    with pytest.raises(GeodiagError, match="no adapter reads checkpoints"):
        geodiag.along(torch.eye(2).numpy(), [tmp_path / "a.pt"])
