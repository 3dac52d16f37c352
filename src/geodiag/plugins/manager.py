"""Finding plugins, and the names they register.

Entry points load lazily: those named ``torch`` and ``jax`` only once the user imported that
framework, the others at the first look-up. One that fails to import becomes a warning.
"""

from __future__ import annotations

import difflib
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pluggy

from geodiag.errors import (
    ArgumentError,
    PluginError,
    PluginWarning,
    UnknownEstimator,
    UnknownNorm,
    shown,
)
from geodiag.norms.base import Norm
from geodiag.plugins import specs

GROUP = "geodiag"
FRAMEWORKS = ("torch", "jax")


@dataclass(frozen=True)
class Registered:
    """One registered name: who owns it, and what builds the object."""

    name: str
    owner: str
    factory: Callable[[], Any]

    @property
    def summary(self) -> str:
        """The first line of the factory's docstring."""
        lines = (self.factory.__doc__ or "").strip().splitlines()
        return lines[0] if lines else ""


def _entry_points() -> Iterable[Any]:
    # Loads the e-mail and archive modules: a third of `import geodiag`, if it stood at the top.
    from importlib import metadata

    return metadata.entry_points(group=GROUP)


class Registry:
    """Plugins and the names they own. The library has one, :data:`registry`."""

    def __init__(self, entry_points: Callable[[], Iterable[Any]] | None = None) -> None:
        self._manager = pluggy.PluginManager(specs.PROJECT)
        self._manager.add_hookspecs(specs)
        self._find_entry_points = entry_points or _entry_points
        self._entry_points: list[tuple[Any, str]] | None = (
            None  # read once: it scans every distribution
        )
        self._tried: set[str] = set()
        self._registered_norms: dict[str, Registered] = {}
        self._lock = threading.RLock()

    def register(self, plugin: Any, name: str | None = None) -> None:
        """Register a plugin object or module.

        Raises:
            PluginError: its name is taken by another plugin, or it is none.
            ArgumentError: ``name`` is not a string.
        """
        if name is not None and not isinstance(name, str):
            raise ArgumentError("a plugin's name must be a string", got=shown(name))
        hooks = (self._manager.parse_hookimpl_opts(plugin, each) for each in dir(plugin))
        if not isinstance(plugin, ModuleType) and not any(hooks):
            raise PluginError(
                "this is no plugin: no module, and without a hook",
                got=shown(plugin),
                do="pass a module or an object with functions marked @geodiag.hookimpl",
            )
        self._add(plugin, name)

    def _add(self, plugin: Any, name: str | None) -> None:
        with self._lock:
            name = name or self._manager.get_canonical_name(plugin)
            known = self._manager.get_plugin(name)
            if known is plugin:
                return
            if known is not None:
                raise _clash("plugin", name, _describe(known), _describe(plugin))
            self._manager.register(plugin, name=name)

    def register_norm(self, name: str, factory: Callable[[], Norm]) -> None:
        """Register ``factory`` (a Norm class, or a function without arguments) under ``name``.

        The same factory may be registered again, also after its definition was run again.

        Raises:
            ArgumentError: ``name`` is not a string, or ``factory`` cannot be called.
            PluginError: the name is taken.
        """
        if not isinstance(name, str) or not name:
            raise ArgumentError("a norm's name must be a non-empty string", got=shown(name))
        if not callable(factory):
            raise ArgumentError(
                "register_norm takes a factory: a Norm class or a function that builds the norm",
                got=shown(factory),
                do="pass the class itself, or lambda: norm",
            )
        with self._lock:
            known = self._norms().get(name)
            if known is not None and _same(known.factory, factory):
                if name in self._registered_norms:
                    self._registered_norms[name] = replace(known, factory=factory)
                return
            owner = f"register_norm (module {getattr(factory, '__module__', '?')})"
            if known is not None:
                raise _clash("norm", name, known.owner, owner)
            self._registered_norms[name] = Registered(name, owner, factory)

    def norms(self) -> dict[str, Registered]:
        """All registered norms by name, sorted."""
        with self._lock:
            return dict(sorted(self._norms().items()))

    def norm(self, name: str) -> Norm:
        """Build the norm registered under ``name``.

        Raises:
            UnknownNorm: nobody registered the name.
        """
        entry = self._find(name, self.norms(), UnknownNorm, "norm")
        norm = entry.factory()
        if not isinstance(norm, Norm):
            raise PluginError(
                f"the norm {name!r} of {entry.owner} is not a geodiag.Norm",
                got=type(norm).__name__,
                do="let the factory return an instance of a Norm subclass",
            )
        return norm

    def estimator(self, name: str) -> Any:
        """Build the estimator registered under ``name``.

        Raises:
            UnknownEstimator: nobody registered the name.
        """
        with self._lock:
            self._load()
            found = self._collect("geodiag_estimators", "estimator")
        return self._find(name, found, UnknownEstimator, "estimator").factory()

    def problem(self, **arguments: Any) -> Any:
        """The Problem of the first plugin that recognises the model, or None."""
        with self._lock:
            self._load()
        return self._manager.hook.geodiag_problem(**arguments)

    def _find(
        self, name: str, found: Mapping[str, Registered], error: type[Exception], kind: str
    ) -> Registered:
        if not isinstance(name, str):
            raise ArgumentError(f"the name of a {kind} is a string", got=shown(name))
        if name in found:
            return found[name]
        near = difflib.get_close_matches(name, found, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise error(  # type: ignore[call-arg]
            f"no {kind} is registered under this name",
            got=shown(name),
            do=f"{hint}registered: {', '.join(sorted(found))}",
        )

    def _norms(self) -> dict[str, Registered]:
        self._load()
        found = self._collect("geodiag_norms", "norm")
        for name, entry in self._registered_norms.items():
            if name in found:
                raise _clash("norm", name, found[name].owner, entry.owner)
            found[name] = entry
        return found

    def _collect(self, hook: str, kind: str) -> dict[str, Registered]:
        found: dict[str, Registered] = {}
        for impl in getattr(self._manager.hook, hook).get_hookimpls():
            owner = impl.plugin_name
            try:
                answer = impl.function()
            except Exception as e:
                raise PluginError(
                    f"the plugin {owner!r} failed in {hook}",
                    got=f"{type(e).__name__}: {e}",
                    do="mend it, or uninstall it",
                ) from e
            named = isinstance(answer, Mapping) and all(isinstance(n, str) for n in answer)
            if not named or not all(map(callable, answer.values())):
                raise PluginError(
                    f"the plugin {owner!r} must return a dict of name → factory from {hook}",
                    got=shown(answer),
                )
            for name, factory in answer.items():
                if name in found:
                    raise _clash(kind, name, found[name].owner, owner)
                found[name] = Registered(name, owner, factory)
        return found

    def _load(self) -> None:
        """Load the entry points that may be loaded by now and were not tried yet."""
        if self._entry_points is None:
            self._entry_points = [(ep, _owner(ep)) for ep in self._find_entry_points()]
        owners: dict[str, str] = {}
        for ep, owner in self._entry_points:
            if owners.setdefault(ep.name, owner) != owner:
                raise _clash("plugin", ep.name, owners[ep.name], owner)
            if ep.name in self._tried or (ep.name in FRAMEWORKS and ep.name not in sys.modules):
                continue
            self._tried.add(ep.name)
            try:
                plugin = ep.load()
                if not self._manager.is_registered(plugin):  # by hand, under another name
                    self._add(plugin, ep.name)
            except PluginError:
                raise
            except Exception as e:  # a broken plugin must not take geodiag down
                warnings.warn(
                    f"the geodiag plugin {ep.name!r}, {owner}, failed to import or to register "
                    f"and is left out: {type(e).__name__}: {e}",
                    PluginWarning,
                    stacklevel=2,
                )


def _owner(ep: Any) -> str:
    return f"{ep.value} ({ep.dist.name if ep.dist else 'unknown distribution'})"


def _clash(kind: str, name: str, first: str, second: str) -> PluginError:
    return PluginError(
        f"two {kind}s have the name {name!r}",
        got=f"one of {first}, one of {second}",
        do="rename one, or uninstall one of the two",
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two factories are one, or two versions of one definition (a notebook cell)."""
    names = [(getattr(f, "__module__", None), getattr(f, "__qualname__", "")) for f in (one, other)]
    return one is other or (names[0] == names[1] and "<" not in (names[0][1] or "<"))


def _describe(plugin: Any) -> str:
    return str(getattr(plugin, "__name__", None) or type(plugin).__qualname__)
