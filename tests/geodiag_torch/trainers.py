"""Trainers of other frameworks on small models."""

from __future__ import annotations

import functools
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from geodiag.optimizers.comparison import OTHER_GRADIENT


@functools.cache
def hide_torchvision():
    """One built for another torch, as other packages may bring along, cannot be imported."""
    if sys.modules.setdefault("torchvision", None) is not None:
        return
    imports = pytest.importorskip("lightning_utilities.core.imports")
    version = imports._version

    def without(name):
        if name == "torchvision":
            raise PackageNotFoundError(name)
        return version(name)

    imports._version = without


def equal(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def only_other_data(records, *besides):
    """Whether a note says, once, that training batches are not the probe.

    For which a step along another batch's gradient need not descend.
    """
    found = [note for r in records for note in r.note.split("; ") if note]
    found = [n for n in found if "the step does not descend" not in n and n not in besides]
    return set(found) == {OTHER_GRADIENT} and len(found) <= 1 + len(besides)


def train_gpt(hf, tmp_path, monitor=None, steps=6, resume=None, kind=None, given=None, **options):
    """A Trainer of Hugging Face on a GPT-2 of 600 parameters: (trainer, callback, dataset).

    ``exact``: without dropout.
    """
    torch.manual_seed(0)
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = hf.GPT2Config(**(drops if options.pop("exact", False) else {}),
        n_layer=1, n_embd=4, n_head=1, vocab_size=12, n_positions=8, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = hf.GPT2LMHeadModel(config)
    tokens = torch.randint(12, (16, 8))
    dataset = [{"input_ids": row, "labels": row} for row in tokens]
    own = given or {}
    given = {
        "output_dir": str(tmp_path),
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "logging_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": 7,
    } | options
    arguments = hf.TrainingArguments(**given)
    trainer = (kind or hf.Trainer)(model, arguments, train_dataset=dataset, **own)
    trainer.remove_callback(hf.PrinterCallback)
    found = monitor(trainer) if monitor else None
    if found:
        trainer.add_callback(found)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, found, dataset
