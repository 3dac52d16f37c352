"""The callback in the Trainer of Hugging Face: what is logged is what was measured.

The truth is the Trainer's own log, and the same training without the callback.
"""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch

import geodiag
from geodiag_torch import callbacks
from tests.geodiag_torch.models import Calls
from tests.geodiag_torch.trainers import equal, only_other_data, train_gpt
from tests.records.test_sinks import mlflow  # noqa: F401, a fixture


class Config(dict):
    """W&B's; see tests/records/test_wandb_rows.py."""

    def update(self, values, allow_val_change=False):
        assert allow_val_change
        super().update(values)


class TestHuggingFace:
    """Its Trainer on a GPT-2 of 600 parameters, with dropout."""

    train = staticmethod(train_gpt)

    def test_records_reach_the_trainers_log(self, hf, tmp_path):
        trainer, callback, _ = self.train(
            hf, tmp_path, lambda t: callbacks.HuggingFaceMonitor(t, every=3)
        )
        assert [r.step for r in callback.records] == [0, 3]
        assert only_other_data(callback.records)
        assert all(0 < r.ratio < math.inf for r in callback.records)
        assert [r.threshold for r in callback.records] == pytest.approx([40.0] * 2)
        history = trainer.state.log_history
        ours = [line for line in history if "geodiag/sharpness" in line]
        assert [line["step"] for line in ours] == [1, 4]
        assert [line["geodiag/sharpness"] for line in ours] == [
            r.sharpness for r in callback.records
        ]
        # The trainer's own lines are where they would be without.
        assert [line["step"] for line in history if "loss" in line] == [2, 4, 6]
        assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks

    @pytest.mark.usefixtures("mlflow")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    def test_reporters_have_what_is_known_of_the_run(self, hf, tmp_path, monkeypatch):
        """MLflow and TensorBoard are the Trainer's own; W&B stands in for itself."""
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
        package = SimpleNamespace(run=SimpleNamespace(config=Config()))
        monkeypatch.setitem(sys.modules, "wandb", package)

        class WandbCallback(hf.TrainerCallback):
            """By whose name W&B is known to be in use."""

        def monitor(trainer):
            trainer.add_callback(WandbCallback())
            return callbacks.HuggingFaceMonitor(
                trainer, every=1, sharpness=False, log=tmp_path / "run.jsonl"
            )

        reports = {"report_to": ["mlflow", "tensorboard"]}
        self.train(hf, tmp_path, monitor, steps=1, **reports)
        (run,) = geodiag.read_runs(tmp_path / "run.jsonl")
        assert package.run.config == {"geodiag": {"run": run.id, **run.header}}
        (stored,) = sys.modules["mlflow"].search_runs(
            search_all_experiments=True, output_format="list"
        )
        assert stored.data.params["geodiag/run"] == run.id
        assert stored.data.params["geodiag/optimizer.lr"] == "0.05"
        events = EventAccumulator(str(tmp_path / "events")).Reload()
        (text,) = events.Tensors("geodiag/run/text_summary")
        assert f"run: {run.id}".encode() in text.tensor_proto.string_val[0]

    def test_training_is_the_same_and_other_callbacks_see_the_records(self, hf, tmp_path):
        seen = []

        class Reporter(hf.TrainerCallback):
            def on_log(self, args, state, control, logs=None, **kwargs):
                seen.append((state.global_step, dict(logs)))

        def both(trainer):
            cheap = callbacks.HuggingFaceMonitor(
                trainer, every=2, sharpness=False, critical=True, prefix="cheap/"
            )
            trainer.add_callback(Reporter())
            trainer.add_callback(cheap)
            others.append(cheap)
            return callbacks.HuggingFaceMonitor(trainer, every=1)

        others = []
        options = {"gradient_accumulation_steps": 2, "optim": "adamw_torch", "max_grad_norm": 0.2}
        plain, _, _ = self.train(hf, tmp_path, **options)
        watched, callback, _ = self.train(hf, tmp_path, both, **options)
        assert equal(plain.model, watched.model)
        assert [x["loss"] for x in plain.state.log_history if "loss" in x] == [
            x["loss"] for x in watched.state.log_history if "loss" in x
        ]
        assert [r.step for r in callback.records] == list(range(6))
        assert [math.isfinite(r.ratio) for r in callback.records] == [True] * 6
        assert [s for s, x in seen if "geodiag/ratio" in x] == [1, 2, 3, 4, 5, 6]
        (cheap,) = others
        assert [r.step for r in cheap.records] == [0, 2, 4]
        assert [r.num_hvps for r in cheap.records] == [0, 0, 0]
        for r, other in zip(cheap.records, callback.records[::2], strict=True):
            assert r.realized_edge == pytest.approx(other.realized_edge, rel=1e-3)
            assert r.threshold == pytest.approx(other.threshold, rel=1e-5)  # as it is clipped
        assert any("as clip_norm= states" in r.note for r in callback.records)
        assert {"cheap/realized_edge", "cheap/critical_lr"} <= set().union(*(x for _, x in seen))

    def test_given_data_and_no_trainer(self, hf, tmp_path):
        probe = {}

        def monitor(trainer):
            batch = torch.stack([row["input_ids"] for row in trainer.train_dataset])
            probe["data"] = {"input_ids": batch, "labels": batch}
            return callbacks.HuggingFaceMonitor(
                norm="linf", data=probe["data"], every=2, max_hvps=5, log=tmp_path / "run.csv"
            )

        trainer, callback, _ = self.train(hf, tmp_path, monitor, steps=3)
        assert [r.step for r in callback.records] == [0, 2]
        assert all("not the geometry of SGD" in r.note for r in callback.records)
        assert len(geodiag.read_records(tmp_path / "run.csv")) == 2
        ours = [x for x in trainer.state.log_history if "geodiag/sharpness" in x]
        assert [x["step"] for x in ours] == [1, 3]

    def test_the_first_batch_is_the_probe(self, hf, tmp_path):
        trained, probed = [], Calls()
        probed.all = []

        def loss(model, batch):
            probed.all.append(batch["input_ids"])
            return hf.GPT2LMHeadModel.forward(model, **batch).loss

        def monitor(trainer):
            trainer.model.register_forward_pre_hook(
                lambda model, args, kwargs: trained.append(kwargs["input_ids"]), with_kwargs=True
            )
            return callbacks.HuggingFaceMonitor(trainer, every=1, max_hvps=2, loss_fn=loss)

        _, callback, _ = self.train(hf, tmp_path, monitor, steps=3)
        assert only_other_data(callback.records)
        assert len(trained) == 3
        assert not torch.equal(trained[0], trained[1])
        assert len(probed.all) > 3
        assert all(torch.equal(batch, trained[0]) for batch in probed.all)
