"""Finding plugins, and the names they register.

Entry points load lazily: those named ``torch`` and ``jax`` once the user has imported that
framework, the others at the first use of a registered name. One that fails to import becomes a
warning.
"""

from __future__ import annotations

import difflib
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from geodiag.errors import (
    ArgumentError,
    CheckpointError,
    GeodiagError,
    PluginError,
    PluginWarning,
    UnknownEstimator,
    UnknownNorm,
    one_line,
    printable,
    shown,
)
from geodiag.estimators.base import SharpnessEstimator
from geodiag.norms.base import Norm
from geodiag.plugins import specs
from geodiag.plugins.guard import Blaming, BrokenPlugin, imported

if TYPE_CHECKING:
    from pathlib import Path

GROUP = "geodiag"
FRAMEWORKS = ("torch", "jax")
_TYPES: dict[str, type] = {"norm": Norm, "estimator": SharpnessEstimator}
_UNKNOWN: dict[str, type[GeodiagError]] = {"norm": UnknownNorm, "estimator": UnknownEstimator}


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
        self._entry_points: list[tuple[Any, str]] | None = None  # read once, which is slow
        self._tried: set[str] = set()
        self._clashes: dict[str, PluginError] = {}  # by entry point; raised at each look-up
        self._registered: dict[str, dict[str, Registered]] = {"norm": {}, "estimator": {}}
        self._lock = threading.RLock()

    def register(self, plugin: Any, name: str | None = None) -> None:
        """Register a plugin: a module or an object with functions marked ``@geodiag.hookimpl``.

        Args:
            plugin: the module or the object.
            name: the plugin's name; None: the module's own.

        Raises:
            PluginError: another plugin has the name, or ``plugin`` has no hook.
            ArgumentError: ``name`` is not a string.

        Examples:
            >>> import types
            >>> geodiag.register(types.ModuleType("my_plugin"))
        """
        if name is not None and not isinstance(name, str):
            raise ArgumentError("a plugin's name must be a string", got=shown(name))
        hooks = (self._manager.parse_hookimpl_opts(plugin, each) for each in dir(plugin))
        if not isinstance(plugin, ModuleType) and not any(hooks):
            raise PluginError(
                "this is not a plugin: neither a module, nor an object with hooks",
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
        """Register a norm under a name, for every call that takes ``norm=``.

        The same factory may be registered again, also after its definition was run again.

        Args:
            name: the name.
            factory: a Norm class, or a function without arguments that builds the norm.

        Raises:
            ArgumentError: ``name`` is not a string, or ``factory`` cannot be called.
            PluginError: the name is taken.

        Examples:
            >>> half = geodiag.norms.Scaled(geodiag.norms.L2(), 0.5)
            >>> geodiag.register_norm("half_l2", lambda: half)
            >>> round(float(geodiag.sharpness(np.diag([3.0, 1.0]), "half_l2")), 6)  # 3 / 0.5²
            12.0
        """
        self._register("norm", name, factory)

    def register_estimator(self, name: str, factory: Callable[[], SharpnessEstimator]) -> None:
        """Register an estimator under a name, for every call that takes ``estimator=``.

        The same factory may be registered again, also after its definition was run again.

        Args:
            name: the name.
            factory: a SharpnessEstimator class, or a function without arguments that builds one.

        Raises:
            ArgumentError: ``name`` is not a string, or ``factory`` cannot be called.
            PluginError: the name is taken.

        Examples:
            >>> geodiag.register_estimator("exact_lanczos", geodiag.estimators.Lanczos)
            >>> H = np.diag([3.0, 1.0])
            >>> round(float(geodiag.sharpness(H, estimator="exact_lanczos")), 6)
            3.0
        """
        self._register("estimator", name, factory)

    def _register(self, kind: str, name: str, factory: Callable[[], Any]) -> None:
        if not isinstance(name, str) or not name or name == "auto":
            raise ArgumentError(
                f'the name of the {kind} must be a non-empty string other than "auto"',
                got=shown(name),
            )
        if not callable(factory):
            raise ArgumentError(
                f"register_{kind} takes a factory: a {_TYPES[kind].__name__} class, or a function "
                "without arguments",
                got=shown(factory),
                do=f"pass the class itself, or lambda: {kind}",
            )
        with self._lock:
            known = self._named(kind).get(name)
            if known is not None and _same(known.factory, factory):
                if name in self._registered[kind]:
                    self._registered[kind][name] = replace(known, factory=factory)
                return
            owner = f"register_{kind} (module {getattr(factory, '__module__', '?')})"
            if known is not None:
                raise _clash(kind, name, known.owner, owner)
            self._registered[kind][name] = Registered(name, owner, factory)

    def norms(self) -> dict[str, Registered]:
        """All registered norms by name, sorted."""
        with self._lock:
            return self._named("norm")

    def estimators(self) -> dict[str, Registered]:
        """All registered estimators by name, sorted."""
        with self._lock:
            return self._named("estimator")

    def norm(self, name: str) -> Norm:
        """Build the norm registered under ``name``.

        Raises:
            UnknownNorm: no norm is registered under the name.
            PluginError: the factory returns something else.
        """
        found: Norm = self._build("norm", name)
        return found

    def estimator(self, name: str) -> SharpnessEstimator:
        """Build the estimator registered under ``name``.

        Raises:
            UnknownEstimator: no estimator is registered under the name.
            PluginError: the factory returns something else.
        """
        found: SharpnessEstimator = self._build("estimator", name)
        return found

    def problem(self, model: Any, arguments: Mapping[str, Any]) -> Any:
        """The Problem of the first plugin that recognises the model, or None."""
        return self._first("geodiag_problem", {"model": model, "arguments": arguments})

    def checkpoint(self, problem: Any, path: Path) -> Any:
        """The point in a checkpoint, by the first plugin whose problem this is.

        Raises:
            CheckpointError: no plugin reads checkpoints of such problems.
        """
        found = self._first("geodiag_checkpoint", {"problem": problem, "path": path})
        if found is None:
            raise CheckpointError(
                "no adapter reads checkpoints of this problem",
                got=type(problem).__name__,
                do="pass the points themselves",
            )
        return found

    def _first(self, hook: str, given: Mapping[str, Any]) -> Any:
        """The first answer of a plugin's hook that is not None."""
        with self._lock:
            self._load()
        for impl in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            name = impl.plugin_name
            with Blaming(f"the plugin {name!r} failed in {hook}", name, (GeodiagError,)):
                found = impl.function(*(given[name] for name in impl.argnames))
            if found is not None:
                return found
        return None

    def answers(self, hook: str) -> Iterator[tuple[str, Any]]:
        """Each plugin's name, and what its implementation of a hook without arguments returns."""
        with self._lock:
            self._load()
        for impl in getattr(self._manager.hook, hook).get_hookimpls():
            with Blaming(f"the plugin {impl.plugin_name!r} failed in {hook}", impl.plugin_name):
                answer = impl.function()
            yield impl.plugin_name, answer

    def _build(self, kind: str, name: str) -> Any:
        if not isinstance(name, str):
            raise ArgumentError(f"the name of the {kind} must be a string", got=shown(name))
        with self._lock:
            found = self._named(kind)
        if name not in found:
            near = difflib.get_close_matches(name, found, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise _UNKNOWN[kind](
                f"no {kind} is registered under this name",
                got=shown(name),
                do=f"{hint}registered: {', '.join(found)}",
            )
        owner = found[name].owner
        with Blaming(f"the {kind} {name!r} of {owner} failed to be built", owner, (GeodiagError,)):
            made = found[name].factory()
        if not isinstance(made, _TYPES[kind]):
            title = _TYPES[kind].__name__
            raise PluginError(
                f"the {kind} {name!r} of {owner} is not a geodiag.{title}",
                got=type(made).__name__,
                do=f"let the factory return an instance of a subclass of {title}",
            )
        return made

    def _named(self, kind: str) -> dict[str, Registered]:
        """All of one kind by name, sorted: of plugins, and of ``register_norm`` and the like."""
        hook, offered = f"geodiag_{kind}s", list[Registered]()
        for owner, answer in self.answers(hook):
            named = isinstance(answer, Mapping) and all(isinstance(n, str) for n in answer)
            if not named or not all(map(callable, answer.values())):
                raise PluginError(
                    f"the plugin {owner!r} must return a dict of name → factory from {hook}",
                    got=shown(answer),
                )
            offered += [Registered(name, owner, factory) for name, factory in answer.items()]
        found: dict[str, Registered] = {}
        for entry in (*offered, *self._registered[kind].values()):
            if entry.name in found:
                raise _clash(kind, entry.name, found[entry.name].owner, entry.owner)
            found[entry.name] = entry
        return dict(sorted(found.items()))

    def _load(self) -> None:
        """Load the entry points that were not tried yet and may be loaded now."""
        if self._entry_points is None:
            self._entry_points = [(ep, _owner(ep)) for ep in self._find_entry_points()]
        owners: dict[str, str] = {}
        for ep, owner in self._entry_points:
            if owners.setdefault(ep.name, owner) != owner:
                raise _clash("plugin", ep.name, owners[ep.name], owner)
            if (clash := self._clashes.get(ep.name)) is not None:
                raise PluginError(clash.what, got=clash.got, do=clash.do)
            if ep.name in self._tried or (ep.name in FRAMEWORKS and ep.name not in sys.modules):
                continue
            self._tried.add(ep.name)
            try:
                plugin = imported(ep)
                if not self._manager.is_registered(plugin):  # by register, under another name
                    self._add(plugin, ep.name)
            except PluginError as e:
                self._clashes[ep.name] = e
                raise
            except KeyboardInterrupt:
                self._tried.discard(ep.name)
                raise
            except Exception as e:  # a broken plugin must not break geodiag
                why = str(e) if isinstance(e, BrokenPlugin) else one_line(e)
                warnings.warn(
                    f"the geodiag plugin {ep.name!r}, {owner}, failed to import or to register "
                    f"and is left out: {why}",
                    PluginWarning,
                    stacklevel=2,
                )


def _owner(ep: Any) -> str:
    return printable(f"{ep.value} ({ep.dist.name if ep.dist else 'unknown distribution'})")


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
