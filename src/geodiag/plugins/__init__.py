"""The plugin system: hooks, the registry, and what geodiag registers itself."""

from geodiag.plugins import builtin
from geodiag.plugins.manager import Registered, Registry
from geodiag.plugins.specs import hookimpl

registry = Registry()
registry.register(builtin, name="geodiag")

__all__ = ["Registered", "Registry", "hookimpl", "registry"]
