"""The modules that wrap others, and what they are called without them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from geodiag.errors import ParameterError

# Where modules keep the one that they wrap: torch.compile, activation checkpointing and offloading,
# and FSDP; and these classes as ``module``.
WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
DATA_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
UNINITIALISED = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside of DataParallel, DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, DATA_PARALLEL):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def named_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by where they are: some wrappers give them other names themselves."""
    return dict(nn.Module.named_parameters(model))


def public_names(model: nn.Module) -> dict[str, str]:
    """The trainable parameters: public name → name in the model.

    The public names omit what wrappers of the whole model or of parts of it put in.

    Raises:
        ParameterError: there are none, or one has no shape yet; or two have the same public name.
    """
    parameters = named_parameters(model)
    for name, t in [*parameters.items(), *model.named_buffers()]:
        if isinstance(t, UNINITIALISED):
            raise ParameterError(
                f"the parameter {name!r} has no shape yet", do="run the model once on a batch first"
            )
    names = [name for name, p in parameters.items() if p.requires_grad]
    if not names:
        raise ParameterError(
            "the model has no trainable parameters",
            got=f"{len(parameters)} parameters, none with requires_grad",
            do="pass a model with parameters, or call model.requires_grad_(True)",
        )
    kept_as = {
        f"{path}.module".removeprefix(".")
        for path, m in model.named_modules()
        if isinstance(m, (*DATA_PARALLEL, AveragedModel))
    }
    if all(name.startswith("module.") for name in names):
        kept_as.add("module")
    found = {_without(name, kept_as): name for name in names}
    if len(found) < len(names):
        raise ParameterError(
            "two parameters have the same name without the wrappers' parts of it",
            got=", ".join(sorted(set(names) - set(found.values()))),
            do=f"rename submodules that are called {' or '.join(sorted(WRAPPED))}",
        )
    return found


def _without(name: str, kept_as: set[str]) -> str:
    """A name without the parts that are wrappers': by what they are called, or where they are."""
    parts = name.split(".")
    places = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return ".".join(
        part
        for part, place in zip(parts, places, strict=True)
        if part not in WRAPPED and place not in kept_as
    )
