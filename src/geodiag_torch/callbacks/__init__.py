"""Callbacks for training frameworks; each framework is imported when its callback is asked for.

LightningMonitor      a Lightning Callback
HuggingFaceMonitor    a TrainerCallback of Hugging Face transformers
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geodiag.errors import MissingDependency

if TYPE_CHECKING:
    from geodiag_torch.callbacks.huggingface import HuggingFaceMonitor
    from geodiag_torch.callbacks.lightning import LightningMonitor

MODULES = {"LightningMonitor": "lightning", "HuggingFaceMonitor": "huggingface"}
PACKAGES = {"lightning": "lightning", "huggingface": "transformers"}

__all__ = ["HuggingFaceMonitor", "LightningMonitor"]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = MODULES[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ImportError as e:
        raise MissingDependency(
            f"{name} needs {PACKAGES[module]}", got=str(e), do=f"pip install {PACKAGES[module]}"
        ) from e
