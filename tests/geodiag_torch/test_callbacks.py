"""The callbacks in the real trainers: what is logged is what was measured, training is the same.

The truth about a step is a linear regression with its dense Hessian; and each trainer's own log.
"""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
from geodiag import errors
from geodiag.optimizers.clipping import STATED
from geodiag.records import Header
from geodiag_torch import callbacks
from tests.geodiag_torch.models import regression
from tests.geodiag_torch.trainers import equal, hide_torchvision, only_other_data

mse = nn.functional.mse_loss


def test_the_adapter_imports_no_trainer():
    trainers = {"lightning", "pytorch_lightning", "transformers", "accelerate"}
    code = f"import geodiag_torch.callbacks, sys; assert not {trainers} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", callbacks.__all__)
def test_a_missing_package_is_named(name, monkeypatch):
    module, package = callbacks.CALLBACKS[name]
    monkeypatch.delitem(sys.modules, f"geodiag_torch.callbacks.{module}", raising=False)
    for hidden in ("lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(errors.MissingDependency, match=package):
        getattr(callbacks, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="KerasMonitor"):
        callbacks.KerasMonitor  # noqa: B018


# Its advice on workers and logging, and torch's on what it calls.
@pytest.mark.filterwarnings("ignore::UserWarning:lightning.*", "ignore:.*LeafSpec:FutureWarning")
class TestLightning:
    """Its Trainer on a linear regression: four batches of ten an epoch, the last one short."""

    @pytest.fixture
    def pl(self):
        hide_torchvision()
        return pytest.importorskip("lightning.pytorch")

    def module(self, pl, optimizers=1, dropout=0.0, together=False):
        class Regression(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = regression(seed=3)[0]
                self.drop = nn.Dropout(dropout)
                self.automatic_optimization = optimizers == 1

            def forward(self, x):
                return self.net(self.drop(x))

            def training_step(self, batch, batch_idx):
                x, y = batch
                if optimizers == 1:
                    loss = mse(self(x), y)
                    self.log("train_loss", loss)
                    return loss
                if together:
                    self.zero_grad()
                    self.manual_backward(mse(self(x), y))
                    for optimizer in self.optimizers():
                        optimizer.step()
                    return None
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                    self.manual_backward(mse(self(x), y))
                    optimizer.step()
                return None

            def configure_optimizers(self):
                if optimizers == 1:
                    return torch.optim.SGD(self.net.parameters(), lr=0.2)
                return [torch.optim.SGD([p], lr=0.1) for p in self.net.parameters()]

        torch.manual_seed(0)
        return Regression()

    def fit(self, pl, module, tmp_path, callback=None, ckpt_path=None, max_epochs=3, **options):
        class Log(pl.loggers.logger.Logger):
            name, version = "test", 0

            def __init__(self):
                super().__init__()
                self.seen = []

            def log_metrics(self, metrics, step=None):
                self.seen.append((step, dict(metrics)))

            def log_hyperparams(self, params):
                self.seen_params = params

        x, y = regression(n=38, seed=3)[1]
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), batch_size=10, shuffle=True
        )
        log = Log()
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=log,
            max_epochs=max_epochs,
            log_every_n_steps=5,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=callback if isinstance(callback, list) else [callback] if callback else [],
            **options,
        )
        torch.manual_seed(5)
        trainer.fit(module, loader, ckpt_path=ckpt_path)
        return trainer, log.seen

    def test_its_loggers_keep_the_run_and_no_metric_is_made_up(self, pl, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        from geodiag_torch.callbacks.lightning import _describe

        board, table = pl.loggers.TensorBoardLogger(tmp_path), pl.loggers.CSVLogger(tmp_path)
        for logger in (board, table):
            _describe(logger, Header("3f2a", {"optimizer": {"lr": 0.1}}), "geodiag/")
            logger.save()
            logger.finalize("success")
        events = EventAccumulator(board.log_dir).Reload()
        (text,) = events.Tensors("geodiag/run/text_summary")
        assert text.tensor_proto.string_val[0].split() == b"run: 3f2a optimizer.lr: 0.1".split()
        assert events.Tags()["scalars"] == []
        assert "lr: 0.1" in (Path(table.log_dir) / "hparams.yaml").read_text()

    def monitor(self, **arguments):
        given = {"criterion": mse, "every": 3, "rtol": 1e-6} | arguments
        return callbacks.LightningMonitor(**given)

    def test_records_reach_every_log(self, pl, tmp_path):
        _, data, h = regression(n=38, seed=3)
        callback = self.monitor(data=data, log=tmp_path / "run.jsonl")
        module = self.module(pl)
        trainer, seen = self.fit(pl, module, tmp_path, callback)
        top = np.linalg.eigvalsh(h)[-1]
        assert [r.step for r in callback.records] == [0, 3, 6, 9]
        assert [r.sharpness for r in callback.records] == pytest.approx([top] * 4)
        assert [r.ratio for r in callback.records] == pytest.approx([top * 0.2 / 2] * 4)
        assert [r.curvature > 0 for r in callback.records] == [True] * 4
        logged = [(step, m) for step, m in seen if "geodiag/sharpness" in m]
        assert [step for step, _ in logged] == [0, 3, 6, 9]
        assert [m["geodiag/sharpness"] for _, m in logged] == pytest.approx([top] * 4)
        assert float(trainer.callback_metrics["geodiag/ratio"]) == pytest.approx(top * 0.2 / 2)
        assert len(geodiag.read_records(tmp_path / "run.jsonl")) == 4
        (run,) = geodiag.read_runs(tmp_path / "run.jsonl")
        assert trainer.logger.seen_params == {"geodiag": {"run": run.id, **run.header}}
        assert run.header["optimizer"]["lr"] == 0.2
        assert not trainer.optimizers[0]._optimizer_step_pre_hooks  # detached at the end
        # Its own log has its own steps: at the fifth and the tenth batch.
        assert [step for step, m in seen if "train_loss" in m] == [4, 9]

    def test_training_is_the_same_and_the_first_batch_the_probe(self, pl, tmp_path):
        ends = []
        for callback in (None, self.monitor(every=1)):
            module = self.module(pl, dropout=0.3)
            _, seen = self.fit(pl, module, tmp_path, callback, gradient_clip_val=1.2)
            ends.append((module, [m["train_loss"] for _, m in seen if "train_loss" in m]))
        assert equal(ends[0][0], ends[1][0])
        assert ends[0][1] == ends[1][1]
        assert torch.is_grad_enabled()
        assert len(callback.records) == 12
        assert only_other_data(callback.records[1:], STATED)  # the first is seen
        assert all(math.isfinite(r.ratio) for r in callback.records)
        # The Trainer's own clipping: of a clipped step 2‖g‖/(ηc), of another 2/η.
        assert {r.threshold > 10.0 for r in callback.records} == {False, True}
        assert all(
            r.threshold == pytest.approx(max(10.0, 10.0 * r.dual_norm / 1.2), rel=1e-4)
            or r.threshold == pytest.approx(10.0)
            for r in callback.records
        )

    def test_a_resumed_run_goes_on_counting(self, pl, tmp_path):
        callback, module = self.monitor(), self.module(pl)
        trainer, _ = self.fit(pl, module, tmp_path, callback, max_epochs=2)
        trainer.save_checkpoint(tmp_path / "at8.ckpt")
        again = self.monitor()
        self.fit(pl, self.module(pl), tmp_path, again, ckpt_path=tmp_path / "at8.ckpt")
        assert [r.step for r in again.records] == [9]
        new = self.monitor(norm="linf")  # of another key: it begins at the Trainer's own count
        self.fit(pl, self.module(pl), tmp_path, new, ckpt_path=tmp_path / "at8.ckpt")
        assert [r.step for r in new.records] == [9]
        told = self.monitor()
        told.load_state_dict({"steps": 100})
        self.fit(pl, self.module(pl), tmp_path, told, max_epochs=1)
        assert [r.step for r in told.records] == [102]
        assert told.state_dict() == {"steps": 104}

    def test_one_of_several_optimizers(self, pl, tmp_path):
        callback = self.monitor(optimizer=1, data=regression(n=38, seed=3)[1])
        self.fit(pl, self.module(pl, optimizers=2), tmp_path, callback)
        h = regression(n=38, seed=3)[2]
        top = np.linalg.eigvalsh(h[12:, 12:])[-1]  # the bias alone
        assert [r.step for r in callback.records] == [0, 3, 6, 9]
        assert [r.sharpness for r in callback.records] == pytest.approx([top] * 4)

    def test_several_optimizers_together(self, pl, tmp_path):
        """Two rates weight the Hessian; without S there are ζ and the critical rate alone."""
        _, data, h = regression(n=38, seed=3)
        callback = self.monitor(optimizer=[0, 1], data=data)
        cheap = self.monitor(
            optimizer=[0, 1], data=data, every=1, sharpness=False, critical=True, norm=None
        )
        plain, module = (self.module(pl, optimizers=2, together=True) for _ in range(2))
        self.fit(pl, plain, tmp_path, max_epochs=1)
        self.fit(pl, module, tmp_path, [callback, cheap], max_epochs=1)
        assert equal(plain, module)
        assert [r.step for r in callback.records] == [0, 3]
        for r in callback.records:
            assert r.ratio == pytest.approx(np.linalg.eigvalsh(h)[-1] * 0.1 / 2)
            assert math.isfinite(r.curvature)  # of the whole step
        assert [r.step for r in cheap.records] == [0, 1, 2, 3]
        assert [cheap.records[i].realized_edge for i in (0, 3)] == pytest.approx(
            [r.realized_edge for r in callback.records]
        )
        descents = [r for r in cheap.records if "does not descend" not in r.note]
        assert descents
        assert all(r.num_hvps == 0 and math.isnan(r.sharpness) for r in cheap.records)
        for r in descents:  # on a quadratic
            assert r.critical_lr == pytest.approx(r.lr / r.realized_edge, rel=1 / 16)

    def test_no_failure_ends_the_fit(self, pl, tmp_path):
        """Training is the same bit by bit, with one warning for each kind of failure."""

        def fails(*args):
            raise KeyError("a key")

        def fails_to_log(*args, **kwargs):
            raise OSError("no server")

        plain = self.module(pl)
        self.fit(pl, plain, tmp_path)
        cases = {
            "no such optimizer": {"optimizer": [0, 1]},
            "KeyError: 'a key'": {"criterion": None, "loss_fn": fails},
            "LossError": {"criterion": lambda out, y: (out - y) ** 2},
            "DataError": {"data": [1, 2]},
            "holds none of the parameters": {"where": "no such name"},
        }
        for text, arguments in cases.items():
            module, callback = self.module(pl), self.monitor(**arguments)
            if "where" in arguments:
                text = "nothing is measured"
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.fit(pl, module, tmp_path, callback)
            (ours,) = [str(w.message) for w in caught if "geodiag" in str(w.message)]
            assert text in ours
            assert equal(plain, module)
            assert callback.records == []
        module, callback = self.module(pl), self.monitor(every=1)
        module.log_dict = fails_to_log
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.fit(pl, module, tmp_path, callback)
        (ours,) = [str(w.message) for w in caught if "geodiag" in str(w.message)]
        assert ours.endswith("failed to log a record: OSError: no server")
        assert equal(plain, module)
        assert len(callback.records) == 12

    def test_arguments_are_checked_before_training(self, pl):
        for arguments in (
            {"norm": "spectrl"},
            {"every": 0},
            {"evry": 3},
            {"estimator": "x"},
            {"clip_norm": 0},
            {"optimizer": []},
            {"optimizer": "first"},
        ):
            with pytest.raises(errors.GeodiagError):
                self.monitor(**arguments)

    def test_a_run_that_breaks_off(self, pl, tmp_path):
        callback, module = self.monitor(every=1), self.module(pl)
        step = module.training_step

        def training_step(batch, batch_idx):
            if module.global_step == 2:
                raise RuntimeError("no more")
            return step(batch, batch_idx)

        module.training_step = training_step
        with pytest.raises(RuntimeError, match="no more"):
            self.fit(pl, module, tmp_path, callback)
        assert [r.step for r in callback.records] == [0, 1, 2]
        assert "not observed" in callback.records[-1].note  # the step's closure raised

    def test_the_loss_must_be_given(self, pl):
        with pytest.raises(errors.ArgumentError, match="needs the loss"):
            callbacks.LightningMonitor()
        with pytest.raises(errors.ArgumentError, match="needs the loss"):
            callbacks.LightningMonitor(criterion=mse, loss_fn=mse)
