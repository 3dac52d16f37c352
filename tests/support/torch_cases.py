"""Architectures in PyTorch: name → function of a dtype, which returns arguments of geodiag.problem.

Small enough for a truth by finite differences. The weights are drawn in float32 and then cast, so
that float64 and float32 measure the same point.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# A torchvision built for another torch, which the benchmarks' peers can bring in, would keep
# transformers from importing its models; none of these needs it.
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()

Case = Callable[[torch.dtype], dict[str, Any]]
CASES: dict[str, Case] = {}
# They compute a part in float32 whatever the dtype: norms, softmax, rotary embeddings, the loss.
SINGLE_INSIDE = {"Hugging Face GPT-2", "Hugging Face Llama"}
CLASSES, TOKENS, WIDTH = 4, 11, 8


def case(name: str) -> Callable[[Case], Case]:
    """Enter a function into the list under ``name``, with its own seed, and the RNG given back."""

    def enter(build: Case) -> Case:
        def seeded(dtype: torch.dtype) -> dict[str, Any]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return build(dtype)

        CASES[name] = seeded
        return seeded

    return enter


def cast(data: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in ``dtype``; containers keep their types."""
    if isinstance(data, dict):
        return {k: cast(v, dtype) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(cast(v, dtype) for v in data)
    return data.to(dtype) if data.is_floating_point() else data


def labelled(model: nn.Module, x: Tensor, dtype: torch.dtype, train: bool = False) -> Any:
    """A classifier with cross-entropy."""
    labels = torch.randint(0, CLASSES, (len(x),))
    data = cast((x, labels), dtype)
    model = model.to(dtype).train(train)
    return {"model": model, "criterion": nn.CrossEntropyLoss(), "data": data}


def vectors(rows: int = 16) -> Tensor:
    return torch.randn(rows, WIDTH)


def series() -> Tensor:
    return torch.randn(8, 5, WIDTH)


def stack(*inner: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *inner, nn.Linear(WIDTH, CLASSES))


@case("MLP (tanh)")
def mlp(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(stack(nn.Tanh()), vectors(), dtype)


@case("MLP (ReLU)")
def relu(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(stack(nn.ReLU()), vectors(), dtype)


@case("LayerNorm")
def layernorm(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(stack(nn.LayerNorm(WIDTH), nn.GELU()), vectors(), dtype)


@case("RMSNorm")
def rmsnorm(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(stack(nn.RMSNorm(WIDTH), nn.SiLU()), vectors(), dtype)


@case("GroupNorm")
def groupnorm(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(stack(nn.GroupNorm(2, WIDTH), nn.GELU()), vectors(), dtype)


@case("dropout (train)")
def dropout(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(stack(nn.Tanh(), nn.Dropout(0.3)), vectors(), dtype, train=True)


def convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4, CLASSES),
    )  # fmt: skip


@case("convolutions, BatchNorm (train)")
def batchnorm_train(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(convnet(), torch.randn(8, 2, 6, 6), dtype, train=True)


@case("convolutions, BatchNorm (eval)")
def batchnorm_eval(dtype: torch.dtype) -> dict[str, Any]:
    model, x = convnet(), torch.randn(8, 2, 6, 6)
    model(x)  # running statistics other than the initial ones
    return labelled(model, x, dtype)


class Last(nn.Module):
    """A classifier on the last (or mean) state of a sequence model."""

    def __init__(self, inner: nn.Module, last: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.inner, self.last, self.head = inner, last, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.last(self.inner(x)))
        return out


@case("LSTM")
def lstm(dtype: torch.dtype) -> dict[str, Any]:
    inner = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    return labelled(Last(inner, lambda out: out[0][:, -1]), series(), dtype, train=True)


@case("GRU")
def gru(dtype: torch.dtype) -> dict[str, Any]:
    inner = nn.GRU(WIDTH, WIDTH, batch_first=True)
    return labelled(Last(inner, lambda out: out[0][:, -1]), series(), dtype, train=True)


@case("nn.TransformerEncoder")
def encoder(dtype: torch.dtype) -> dict[str, Any]:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, 0.1, "gelu", batch_first=True)
    inner = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return labelled(Last(inner, lambda out: out.mean(1)), series(), dtype, train=True)


class Attention(nn.Module):
    """Causal scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)


@case("scaled_dot_product_attention")
def attention(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(Last(Attention(), lambda out: out.mean(1)), series(), dtype)


class Tied(nn.Module):
    """The output layer shares the embedding's weight; one parameter is unused, one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.deep = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, TOKENS, bias=False)
        self.out.weight = self.embed.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(WIDTH), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.deep(self.embed(tokens))) * self.frozen)
        return out


@case("tied embedding, unused and frozen parameters")
def tied(dtype: torch.dtype) -> dict[str, Any]:
    tokens = torch.randint(0, TOKENS, (16,))
    data = (tokens, tokens.roll(1))
    return {"model": Tied().to(dtype), "criterion": nn.CrossEntropyLoss(), "data": data}


class Checkpointed(nn.Module):
    """The middle of a network with activations that the backward pass recomputes."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = stack(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)), reentrant

    def forward(self, x: Tensor) -> Tensor:
        first, *middle, last = self.net
        inner = nn.Sequential(*middle, nn.Tanh())
        out: Tensor = last(checkpoint(inner, first(x), use_reentrant=self.reentrant))
        return out


@case("checkpointed activations")
def checkpointed(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(Checkpointed(reentrant=False), vectors(), dtype)


@case("checkpointed activations (reentrant)")
def reentrant(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(Checkpointed(reentrant=True), vectors(), dtype)


@case("torch.compile of the model")
def compiled(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(torch.compile(stack(nn.Tanh()), backend="aot_eager"), vectors(), dtype)


@case("torch.compile of a submodule")
def compiled_inside(dtype: torch.dtype) -> dict[str, Any]:
    inner = torch.compile(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()), backend="aot_eager")
    return labelled(stack(inner), vectors(), dtype)


class Hiding(torch.autograd.Function):
    """tanh with a backward pass that hides that its slope depends on x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return (1 - y.detach() ** 2) * grad


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Hiding.apply(x)  # type: ignore[no-any-return,no-untyped-call]


@case("custom function, wrong double backward")
def custom(dtype: torch.dtype) -> dict[str, Any]:
    return labelled(stack(Custom()), vectors(), dtype)


@case("weight_norm")
def weight_norm(dtype: torch.dtype) -> dict[str, Any]:
    inner = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    return labelled(stack(inner, nn.Tanh()), vectors(), dtype)


@case("dict batches")
def dicts(dtype: torch.dtype) -> dict[str, Any]:
    data = [{"x": vectors(), "y": torch.randint(0, CLASSES, (16,))} for _ in range(2)]

    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    return {"model": stack(nn.Tanh()).to(dtype), "loss_fn": loss_fn, "data": cast(data, dtype)}


@case("ragged batches")
def ragged(dtype: torch.dtype) -> dict[str, Any]:
    whole = labelled(stack(nn.Tanh()), vectors(19), dtype)
    x, y = whole["data"]
    return whole | {"data": list(zip(x.split(8), y.split(8), strict=True))}


def small(**others: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 12, "initializer_range": 0.3,
    } | others  # fmt: skip


def language(model: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """A Hugging Face language model, which brings its own loss, on sentences of several lengths."""
    words = torch.randint(1, TOKENS, (4, 6))
    mask = torch.arange(6) < torch.tensor([[6], [3], [5], [6]])
    words = words * mask
    data = {
        "input_ids": words,
        "attention_mask": mask.long(),
        "labels": words.masked_fill(~mask, -100),
    }
    return {"model": model.to(dtype), "data": data}


ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


@case("Hugging Face GPT-2")
def gpt2(dtype: torch.dtype) -> dict[str, Any]:
    config = transformers.GPT2Config(
        n_layer=1, n_embd=WIDTH, n_head=2, vocab_size=TOKENS, n_positions=6,
        initializer_range=0.3, **ENDS,
    )  # fmt: skip
    return language(transformers.GPT2LMHeadModel(config).eval(), dtype)


@case("Hugging Face Llama")
def llama(dtype: torch.dtype) -> dict[str, Any]:
    config = transformers.LlamaConfig(
        vocab_size=TOKENS, num_key_value_heads=1, max_position_embeddings=6, **small(**ENDS)
    )
    return language(transformers.LlamaForCausalLM(config).eval(), dtype)


@case("Hugging Face BERT")
def bert(dtype: torch.dtype) -> dict[str, Any]:
    config = transformers.BertConfig(
        vocab_size=TOKENS, max_position_embeddings=6, **small(pad_token_id=0)
    )
    return language(transformers.BertForMaskedLM(config).eval(), dtype)


@case("Hugging Face ViT")
def vit(dtype: torch.dtype) -> dict[str, Any]:
    config = transformers.ViTConfig(
        image_size=4, patch_size=2, num_channels=1, num_labels=CLASSES, **small()
    )
    model = transformers.ViTForImageClassification(config).eval().to(dtype)
    data = {"pixel_values": torch.randn(8, 1, 4, 4), "labels": torch.randint(0, CLASSES, (8,))}
    return {"model": model, "data": cast(data, dtype), "weight": lambda b: len(b["labels"])}
