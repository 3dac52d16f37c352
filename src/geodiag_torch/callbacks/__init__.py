"""Callbacks for training frameworks; each framework is imported when its callback is asked for.

LightningMonitor      a Lightning Callback
HuggingFaceMonitor    a TrainerCallback of Hugging Face transformers
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geodiag.errors import import_optional

if TYPE_CHECKING:
    from geodiag_torch.callbacks.huggingface import HuggingFaceMonitor
    from geodiag_torch.callbacks.lightning import LightningMonitor

CALLBACKS = {  # the module of each, and the package that it needs
    "HuggingFaceMonitor": ("huggingface", "transformers"),
    "LightningMonitor": ("lightning", "lightning"),
}

__all__ = ["HuggingFaceMonitor", "LightningMonitor"]


def __getattr__(name: str) -> Any:
    if name not in CALLBACKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, package = CALLBACKS[name]
    what, do = f"{name} needs {package}", f"pip install {package}"
    return getattr(import_optional(f"{__name__}.{module}", what, do), name)
