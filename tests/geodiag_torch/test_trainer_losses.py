"""The loss that the Hugging Face monitor measures is the Trainer's own, and nothing ends training.

The truth is the loss in the Trainer's own log, and a cross-entropy computed by hand.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from geodiag_torch import callbacks
from tests.geodiag_torch.trainers import equal, train_gpt


class TestTrainer:
    train = staticmethod(train_gpt)

    def losses(self, trainer):
        """What the Trainer trained with, of each step, as it logged it."""
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    def watch(self, trainer):
        return callbacks.HuggingFaceMonitor(trainer, every=1, max_hvps=4)

    @pytest.mark.parametrize("case", ["smoothing", "loss function", "override", "instance"])
    def test_the_loss_is_the_trainers_own(self, hf, tmp_path, case):
        """The first record's loss is that of the Trainer's log, of the same batch."""
        kind, given, options = None, None, {"logging_steps": 1, "exact": True}

        def function(outputs, labels, num_items_in_batch):
            logits, y = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            loss = nn.functional.cross_entropy(logits, y, reduction="sum")
            return 7 * loss / num_items_in_batch

        class Tripled(hf.Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                labels = inputs.pop("labels")
                out = model(**inputs, labels=labels)
                return (3 * out.loss, out) if return_outputs else 3 * out.loss

        if case == "smoothing":
            options["label_smoothing_factor"] = 0.1
        elif case == "loss function":
            given = {"compute_loss_func": function}
        else:
            kind = Tripled

        def monitor(trainer):
            if case == "instance":  # given to one Trainer alone
                trainer.compute_loss = lambda *a, **k: 5 * Tripled.compute_loss(trainer, *a, **k)
            return self.watch(trainer)

        plain, _, _ = self.train(
            hf, tmp_path, lambda t: monitor(t) and None, kind=kind, given=given, **options
        )
        trainer, callback, _ = self.train(hf, tmp_path, monitor, kind=kind, given=given, **options)
        assert equal(plain.model, trainer.model)
        assert self.losses(plain) == self.losses(trainer)
        assert len(callback.records) == 6
        assert callback.records[0].loss == pytest.approx(self.losses(trainer)[0], rel=1e-3)
        assert not any("model's own" in r.note for r in callback.records)
        assert ("compute_loss" in vars(trainer)) == (case == "instance")
        # Of eight labels in a row seven are predicted; the Trainer counts eight for a GPT-2.
        factors = {
            "smoothing": 7 / 8,
            "loss function": 7 * 7 / 8,
            "override": 3.0,
            "instance": 15.0,
        }
        assert callback.records[0].loss == pytest.approx(factors[case] * math.log(12), rel=0.02)

    def test_smoothed_labels_by_hand(self, hf, tmp_path):
        """Cross-entropy with label smoothing of torch, on the model before its first step."""
        seen = []

        def monitor(trainer):
            begin = {k: x.clone() for k, x in trainer.model.state_dict().items()}
            seen.append(begin)
            data = torch.stack([row["input_ids"] for row in trainer.train_dataset])
            data[0, 5:] = -100  # left out of the mean, in batches of different length
            batches = [{"input_ids": x.clamp(min=0), "labels": x} for x in data.split(10)]
            return callbacks.HuggingFaceMonitor(trainer, every=9, max_hvps=2, data=batches)

        trainer, callback, dataset = self.train(
            hf, tmp_path, monitor, exact=True, label_smoothing_factor=0.1
        )
        trainer.model.load_state_dict(seen[0])
        x = torch.stack([row["input_ids"] for row in dataset])
        y = x.clone()
        y[0, 5:] = -100
        logits = trainer.model(input_ids=y.clamp(min=0)).logits.detach()
        expected = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), y[:, 1:].flatten(), label_smoothing=0.1
        )
        share = (y[:, 1:] >= 0).sum() / (y >= 0).sum()  # the Trainer divides by all labels
        assert callback.records[0].loss == pytest.approx(float(expected * share), rel=1e-5)

    def test_a_loss_that_keeps_accounts_is_not_called_by_measurements(self, hf, tmp_path):
        class Counting(hf.Trainer):
            calls = 0

            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.values, self.table = [], {"train": {"loss": []}}

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                self.calls += 1
                loss = super().compute_loss(model, inputs, False, num_items_in_batch)
                value = float(loss.detach())
                self.values.append(value)
                self.table["train"]["loss"].append(value)
                self.state.best_metric = value
                self.log({"calls": self.calls})
                return loss * (1 + 0.1 * self.calls)

        plain, _, _ = self.train(hf, tmp_path, kind=Counting)
        trainer, callback, _ = self.train(hf, tmp_path, self.watch, kind=Counting)
        assert equal(plain.model, trainer.model)
        assert trainer.calls == plain.calls == 6
        assert trainer.values == plain.values
        assert trainer.table == plain.table
        assert trainer.state.best_metric == plain.state.best_metric
        assert len([x for x in trainer.state.log_history if "calls" in x]) == 6
        assert len(callback.records) == 6

    def test_without_the_trainer_the_record_says_whose_loss_it_is(self, hf, tmp_path):
        _, callback, _ = self.train(
            hf, tmp_path, lambda _: callbacks.HuggingFaceMonitor(every=1, max_hvps=2)
        )
        assert ["the model's own" in r.note for r in callback.records] == [True] + 5 * [False]

    def test_no_failure_ends_training(self, hf, tmp_path):
        def fails(model, batch):
            raise KeyError("a key")

        plain, _, _ = self.train(hf, tmp_path)
        cases = {
            "KeyError: 'a key'": {"loss_fn": fails},
            "LossError": {"loss_fn": lambda model, batch: 1.0},
            "DataError": {"data": [1, 2]},
            "DataError.*empty": {"data": []},
        }
        for text, arguments in cases.items():
            with pytest.warns(RuntimeWarning, match=text):
                trainer, callback, _ = self.train(
                    hf, tmp_path, lambda t, a=arguments: callbacks.HuggingFaceMonitor(t, **a)
                )
            assert equal(plain.model, trainer.model)
            assert trainer.state.global_step == 6
            assert callback.records == []
        with pytest.warns(
            RuntimeWarning, match=r"the Trainer's pass HuggingFaceMonitor\(trainer\)"
        ):
            trainer, callback, _ = self.train(
                hf,
                tmp_path,
                lambda _: callbacks.HuggingFaceMonitor(),
                label_smoothing_factor=0.1,
            )
        assert trainer.state.global_step == 6

    def test_a_trainers_loss_that_fails_is_replaced_by_the_models_own(self, hf, tmp_path):
        class Fickle(hf.Trainer):  # works in the Trainer's own frame alone
            def training_step(self, *args, **kwargs):
                self.inside = [True]
                try:
                    return super().training_step(*args, **kwargs)
                finally:
                    self.inside = []

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                return self.inside[0] * model(**inputs).loss

        plain, _, _ = self.train(hf, tmp_path, kind=Fickle)
        trainer, callback, _ = self.train(hf, tmp_path, self.watch, kind=Fickle)
        assert equal(plain.model, trainer.model)
        assert "model's own: the Trainer's failed: IndexError" in callback.records[0].note
        assert callback.records[0].loss == pytest.approx(math.log(12), rel=0.02)

    def test_two_monitors_of_one_trainer(self, hf, tmp_path):
        def both(trainer):
            trainer.add_callback(self.watch(trainer))
            return callbacks.HuggingFaceMonitor(trainer, "linf", every=2, max_hvps=2)

        trainer, callback, _ = self.train(hf, tmp_path, both, label_smoothing_factor=0.1)
        assert "compute_loss" not in vars(trainer)
        assert [r.step for r in callback.records] == [0, 2, 4]
        assert not any("model's own" in r.note for r in callback.records)

    def test_data_sets_are_not_copied_for_a_loss(self, hf, tmp_path):
        rows, seen = [], []

        class Curious(hf.Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                seen.append((self.train_dataset, self.eval_dataset))
                return model(**inputs).loss

        def monitor(trainer):
            trainer.train_dataset = list(trainer.train_dataset)
            trainer.eval_dataset = {"held out": trainer.train_dataset}
            rows.extend((trainer.train_dataset, trainer.eval_dataset))
            return self.watch(trainer)

        _, callback, _ = self.train(hf, tmp_path, monitor, kind=Curious)
        assert not any("model's own" in r.note for r in callback.records)
        assert len(seen) > 6  # those of measurements too
        assert all(train is rows[0] and held_out is rows[1] for train, held_out in seen)
