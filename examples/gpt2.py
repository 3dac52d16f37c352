"""The sharpness of GPT-2 small, 124 million parameters, built from its configuration, on a CPU."""

import json
import os

import torch
import transformers

import geodiag

config = transformers.GPT2Config(**json.loads(os.environ.get("GPT2_CONFIG", "{}")))
torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(config).eval()  # random weights: nothing is downloaded
words = torch.randint(config.vocab_size, (1, 64))
batch = {"input_ids": words, "labels": words}
print(f"{model.num_parameters():,} parameters")
result = geodiag.sharpness(model, "linf", data=batch, progress=True)
print(result, result.status.explanation, *result.notes, sep="\n")
print(f"signed descent turns unstable at lr = {2 * result.dual_norm / result.value:.3g}")
