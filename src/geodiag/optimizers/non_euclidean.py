"""The step of steepest descent in any norm (arXiv 2603.05002, Section 2), for both adapters.

w⁺ = w − lr · ‖g‖* · lmo(g)       normalized=False: GD, ℓ∞ descent, spectral GD, …
w⁺ = w − lr · lmo(g)              normalized=True:  SignGD, Muon without momentum, …
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geodiag.blocks import Blocks, check_like, dot, namespace
from geodiag.errors import NormError
from geodiag.norms import Norm


def steepest_step(norm: Norm, g: Blocks, lr: Mapping[str, Any], normalized: bool) -> Blocks:
    """w − w⁺ of one step, zero where the gradient of a parameter is zero.

    ``norm`` is bound to the parameters, ``g`` is their gradient and ``lr`` the learning rate of
    each; ‖g‖* is joint over all of them. NormError if lmo(g) has other names or shapes than ``g``.

    Examples:
        >>> from geodiag.norms import Linf
        >>> steepest_step(Linf(), {"w": np.array([3.0, -1.0])}, {"w": 0.5}, normalized=False)
        {'w': array([ 2., -2.])}
    """
    direction = norm.lmo(g)
    shapes = {name: tuple(x.shape) for name, x in g.items()}
    check_like(direction, shapes, f"lmo(g) of {norm!r}", NormError)
    # ⟨g, lmo(g)⟩ is the dual norm, without asking the norm again.
    factor = 1.0 if normalized else dot(g, direction)
    xp, step, rest = namespace(g), {}, dict(direction)
    for name, x in g.items():
        move = rest.pop(name) * (lr[name] * factor)  # popped, so that memory is freed
        # Where g = 0, lmo(g) may be any feasible point, and is no direction of descent.
        step[name] = xp.where(xp.any(x != 0), move, xp.zeros_like(move))
    return step
