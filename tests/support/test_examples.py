"""The examples run: at a small size, and in this process, where their imports are already paid."""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path

import pytest

import tests.support.torch_cases  # noqa: F401  # hides a torchvision that does not load
from geodiag.records import read_records

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 11, "n_positions": 64,
         "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip


def test_gpt2(monkeypatch, capsys):
    monkeypatch.setenv("GPT2_CONFIG", json.dumps(SMALL))
    ran = runpy.run_path(str(EXAMPLES / "gpt2.py"))
    printed = capsys.readouterr().out
    # Embeddings 11·8 + 64·8, a block of 12·8² + 13·8, a last norm of 2·8.
    assert "1,488 parameters" in printed
    assert f"{ran['result'].value:.6g}" in printed
    assert ran["result"].value > 0
    assert not ran["result"].notes


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_examples_say_what_they_are_in_few_lines(path):
    text = path.read_text("utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= (140 if path.name == "transformer.py" else 80)


TRAININGS = ("nanogpt", "resnet", "flax_mlp", "equinox_mlp")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_is_measured(name, monkeypatch, capsys, tmp_path):
    for package in ("flax", "equinox"):
        if name.startswith(package):
            pytest.importorskip(package)
    log = tmp_path / "run.jsonl"
    monkeypatch.setattr("sys.argv", [name, "--steps", "21", "--log", str(log)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    records = read_records(log)
    assert [r.step for r in records] == [0, 20]
    printed = capsys.readouterr().out
    for r in records:
        assert f"step {r.step}: loss {r.loss:.4g}" in printed
        assert r.sharpness > 0
        assert r.ratio == pytest.approx(r.sharpness / r.threshold, rel=1e-6)
    assert records[1].loss < records[0].loss
