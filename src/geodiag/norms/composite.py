"""Norms made of norms: combine tensors, or groups of tensors, by max, sum or ℓ2.

One algebra gives the geometries of the layerwise optimizers:

    MaxOver(operator norm)   spectral descent, Muon       LMO: each tensor's own; duals add
    SumOver(L2())            block coordinate descent     LMO: the best tensor alone; duals max
    L2Over(norm)             joint trust regions          LMO: weighted by dual; duals in ℓ2

``MaxOver``, ``SumOver`` and ``L2Over`` take one norm and apply it to every tensor by itself;
``ByParameter`` assigns norms to name patterns. A radius r divides: ‖d‖ = max_i base(d_i)/r_i.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from geodiag.blocks import Array, Blocks, scale
from geodiag.core.selection import assign
from geodiag.core.spaces import Space
from geodiag.core.validation import as_number, is_number
from geodiag.envelopes import Envelope, Piece, Product
from geodiag.errors import ArgumentError, NormError, shown
from geodiag.norms.base import Face, Norm, QuadraticNorm, UnboundNorm, require_norm
from geodiag.norms.joint import Joint, L2Joint, MaxJoint, Part, SumJoint
from geodiag.norms.quadratic import BlockMap, FromMaps, scaled_quadratic

# A number for all tensors, numbers by name pattern, or a function of the name and of the shape as
# a matrix (None where the tensor is a vector or a scalar).
RadiusFunction = Callable[[str, tuple[int, int] | None], float]
Radii = float | Mapping[str, float] | RadiusFunction | None
Group = tuple[tuple[str, ...], Norm, float]


class _Composite(UnboundNorm):
    """What the user writes; binds to a :class:`Joint`, or to the one part if there is only one."""

    joint: ClassVar[type[Joint]]

    @abstractmethod
    def groups(self, space: Space) -> list[Group]:
        """The groups of tensor names, each with the norm that measures it and its radius."""

    def bind(self, space: Space) -> Norm:
        parts = []
        for names, norm, radius in self.groups(space):
            full = tuple(n for n in names if space.size_of(n))
            if full:
                parts.append(Part(full, norm.bind(space.select(full)), radius))
        if not parts:
            raise NormError(f"{self!r} has no tensor to measure", do="measure non-empty tensors")
        if len(parts) == 1 and set(parts[0].names) == set(space.names):
            return _rescaled(parts[0].norm, 1.0 / parts[0].radius, repr(self))
        if self.joint is L2Joint and all(isinstance(p.norm, QuadraticNorm) for p in parts):
            return _quadratic_l2(tuple(parts), repr(self))
        return self.joint(tuple(parts), repr(self))


class _Over(_Composite):
    """One norm, applied to every tensor by itself."""

    def __init__(self, norm: Norm, radii: Radii = None) -> None:
        self.norm, self.radii = require_norm(norm, type(self).__name__), radii
        _check_radii(radii)

    def groups(self, space: Space) -> list[Group]:
        radii = _radii_by_tensor(self.radii, space)
        return [((name,), self.norm, radii[name]) for name in space.names]

    def __repr__(self) -> str:
        inner = [repr(self.norm)] if type(self) in (MaxOver, SumOver, L2Over) else []
        return f"{type(self).__name__}({', '.join(inner + _shown(self.radii))})"


class MaxOver(_Over):
    """max over tensors of ``norm``; the unit ball is a product of balls.

    Examples:
        >>> norm, shapes = MaxOver(geodiag.norms.L2()), {"a": (2,), "b": (2,)}
        >>> round(float(geodiag.sharpness(np.eye(4), norm, shapes=shapes)), 6)
        2.0
    """

    joint = MaxJoint


class SumOver(_Over):
    """Sum over tensors of ``norm``; the LMO moves the best tensor alone.

    Examples:
        >>> norm, shapes = SumOver(geodiag.norms.L2()), {"a": (2,), "b": (2,)}
        >>> round(float(geodiag.sharpness(np.eye(4), norm, shapes=shapes)), 6)
        1.0
    """

    joint = SumJoint


class L2Over(_Over):
    """√(Σ norm²) over tensors.

    Examples:
        >>> norm, shapes = L2Over(geodiag.norms.L2()), {"a": (2,), "b": (2,)}
        >>> round(float(geodiag.sharpness(np.eye(4), norm, shapes=shapes)), 6)
        1.0
    """

    joint = L2Joint


class ByParameter(_Composite):
    """Norms assigned to name patterns: ``ByParameter({"bias$": L2(), ".*": Spectral()})``.

    Each tensor goes to the first pattern that it matches (``re.search``); the tensors of one
    pattern are measured together by its norm (wrap it in ``MaxOver`` to take them one by one).
    ``over`` says how the groups combine: ``MaxOver`` (default), ``SumOver`` or ``L2Over``.
    ``radii``: numbers by the same patterns; 1 where absent.

    Raises (when bound to the parameters):
        ParameterError: a pattern matches no tensor.
        NormError: a tensor matches no pattern.

    Examples:
        >>> norm = geodiag.norms.ByParameter({"^a": geodiag.norms.L2(), ".*": geodiag.norms.Linf()})
        >>> shapes = {"a": (2,), "b": (2,)}
        >>> round(float(geodiag.sharpness(np.eye(4), norm, shapes=shapes)), 6)  # 1 + 2
        3.0
    """

    def __init__(
        self,
        norms: Mapping[str, Norm],
        over: type[_Over] = MaxOver,
        radii: Mapping[str, float] | None = None,
    ) -> None:
        if not isinstance(norms, Mapping) or not norms:
            raise ArgumentError(
                "ByParameter takes a dict of name pattern → norm",
                got=shown(norms),
                do='pass e.g. {"bias$": L2(), ".*": Spectral()}',
            )
        if not any(over is kind for kind in (MaxOver, SumOver, L2Over)):
            raise ArgumentError(
                "over= must be MaxOver, SumOver or L2Over", got=shown(over), do="pass the class"
            )
        self.norms = {p: require_norm(n, f"ByParameter[{shown(p)}]") for p, n in norms.items()}
        if radii is not None and not isinstance(radii, Mapping):
            raise ArgumentError("radii= of ByParameter must be a dict", got=shown(radii))
        self.over, self.radii = over, dict(radii or {})
        self.joint = over.joint  # type: ignore[misc]
        _check_radii(self.radii)
        unknown = set(self.radii) - set(self.norms)
        if unknown:
            raise ArgumentError(
                "radii= of ByParameter must use the patterns of its norms",
                got=", ".join(sorted(map(shown, unknown))),
                do=f"use {', '.join(sorted(map(shown, self.norms)))}",
            )

    def groups(self, space: Space) -> list[Group]:
        found = assign(self.norms, space.names)
        matched = {n for names in found.values() for n in names}
        missed = [n for n in space.names if n not in matched]
        if missed:
            raise NormError(
                "ByParameter leaves tensors without a norm",
                got=", ".join(map(repr, missed[:6])),
                do='add a pattern for them (".*" last catches all), or leave them out with where=',
            )
        return [
            (tuple(names), self.norms[pattern], float(self.radii.get(pattern, 1.0)))
            for pattern, names in found.items()
            if names
        ]

    def __repr__(self) -> str:
        rest = ", ".join([self.over.__name__, *_shown(self.radii or None)])
        return f"ByParameter({self.norms!r}, {rest})"


class Scaled(Norm):
    """c·‖·‖ for c > 0; the sharpness is divided by c².

    Examples:
        >>> norm, shapes = Scaled(geodiag.norms.L2(), 2), {"a": (2,), "b": (2,)}
        >>> round(float(geodiag.sharpness(np.eye(4), norm, shapes=shapes)), 6)
        0.25
    """

    def __init__(self, norm: Norm, c: float) -> None:
        if not (is_number(c) and 0 < c < float("inf")):
            raise ArgumentError("the factor of Scaled must be positive", got=shown(c))
        self.norm, self.c = require_norm(norm, "Scaled"), float(c)
        self.decomposes = self.norm.decomposes

    def bind(self, space: Space) -> Norm:
        return _rescaled(self.norm.bind(space), self.c, repr(self))

    def value(self, d: Blocks) -> Array:
        return self.norm.value(d) * self.c

    def lmo(self, g: Blocks) -> Blocks:
        return scale(self.norm.lmo(g), 1.0 / self.c)

    def dual(self, g: Blocks) -> Array:
        return self.norm.dual(g) / self.c

    def envelope(self, space: Space) -> Envelope | None:
        inner = self.norm.envelope(space)
        return None if inner is None else Product([Piece(space.names, inner, 1.0 / self.c)])

    def faces(self, space: Space) -> Iterator[Face] | None:
        faces = self.norm.faces(space)
        return None if faces is None else ((p / self.c, basis) for p, basis in faces)

    def __repr__(self) -> str:
        return f"Scaled({self.norm!r}, {self.c:g})"


def _rescaled(norm: Norm, c: float, name: str) -> Norm:
    if c == 1.0:
        return norm
    if isinstance(norm, QuadraticNorm):
        return scaled_quadratic(norm, c, name)
    return Scaled(norm, c)


def _quadratic_l2(parts: tuple[Part, ...], name: str) -> QuadraticNorm:
    scaled = [
        (part, scaled_quadratic(part.norm, 1.0 / part.radius, name))
        for part in parts
        if isinstance(part.norm, QuadraticNorm)
    ]

    def by_parts(maps: list[tuple[Part, BlockMap]]) -> BlockMap:
        def apply(x: Blocks) -> Blocks:
            out = dict(x)
            for part, f in maps:
                out.update(f(part.of(x)))
            return out

        return apply

    metric = by_parts([(part, norm.metric) for part, norm in scaled])
    return FromMaps(metric, by_parts([(part, norm.inverse_metric) for part, norm in scaled]), name)


def _check_radii(radii: Radii) -> None:
    if radii is None or callable(radii):
        return
    values = radii.values() if isinstance(radii, Mapping) else [radii]
    for r in values:
        _radius(float(r) if is_number(r) else None, r)


def _radius(r: float | None, got: Any) -> float:
    if r is None or not 0 < r < float("inf"):
        raise ArgumentError("radii must be positive numbers", got=shown(got))
    return r


def _radii_by_tensor(radii: Radii, space: Space) -> dict[str, float]:
    if radii is None:
        return dict.fromkeys(space.names, 1.0)
    if isinstance(radii, Mapping):
        out = dict.fromkeys(space.names, 1.0)
        for pattern, names in assign(radii, space.names).items():
            out.update(dict.fromkeys(names, float(radii[pattern])))
        return out
    if not callable(radii):
        return dict.fromkeys(space.names, float(radii))
    out = {}
    for name in space.names:
        if not space.size_of(name):  # no shape rule holds for it, and nothing is measured
            out[name] = 1.0
            continue
        view = space.matrix_view.get(name)
        answer = radii(name, None if view is None else view.shape(space.shapes[name]))
        out[name] = _radius(as_number(answer), answer)
    return out


def _shown(radii: Radii) -> list[str]:
    return [] if radii is None else [f"radii={getattr(radii, '__name__', radii)}"]
