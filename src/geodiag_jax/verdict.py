"""What a cross-check of a loss with derivative rules of its own means for its products.

Judged once for each loss, and kept. The rules: a gradient that is that of the loss, with products
that are not its derivative, is differentiated by differences. One that is not (a straight-through
estimator, a scaled or reversed gradient) has the Hessian that JAX derives from the same rules, as
with ``stop_gradient``. No eigenvalue is claimed of products that are not symmetric.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from geodiag.blocks import norm2
from geodiag.errors import EngineError
from geodiag.oracles import CrossCheck, Oracle, cross_check
from geodiag_jax.derivatives import StaticLoss
from geodiag_jax.inspection import LossStructure
from geodiag_jax.precision import SINGLE

# A gradient that is off by less than this is meant to be that of the loss, but rounded, say. Then
# the curvature of the products may not be off by more than that.
APPROXIMATE, CURVED = 0.05, 0.1


@dataclass(frozen=True)
class Verdict:
    """What is to be done about the products of a loss.

    Attributes:
        differences: why they must be differences of gradients; "" where they need not be.
        what: the error where they may not be.
        note: for the result.
        lost: how far second derivatives are from those of the loss, if no engine has better ones.
        asymmetry: of products, relative to their size; None where they are symmetric.
    """

    differences: str = ""
    what: str = "Hessian-vector products disagree with finite differences of the gradient"
    note: str = ""
    lost: str = ""
    asymmetry: float | None = None

    def disagreement(self) -> EngineError:
        """The error where products may not be differences."""
        return EngineError(
            self.what,
            got=self.differences,
            do='pass engine="finite-difference", or correct the derivative rules',
        )

    def require_hessian(self) -> None:
        """Raise an EngineError where products are not those of a Hessian."""
        if self.lost:
            raise EngineError(
                "the second derivatives of the loss are lost in rules that round",
                got=self.lost,
                do="let the rule keep what it needs in the precision of the loss, or write it by "
                "jax.lax.stop_gradient",
            )
        if self.asymmetry is not None:
            raise EngineError(
                "Hessian-vector products are not symmetric, so S is not defined",
                got=f"⟨u, Hv⟩ and ⟨v, Hu⟩ differ by {self.asymmetry:.2g} of their size",
                do="measure a loss without derivative rules that clip or replace gradients, or "
                "write them by jax.lax.stop_gradient",
            )


@functools.lru_cache(maxsize=1024)
def known_verdict(static: StaticLoss, by_differences: bool) -> list[Verdict]:
    """[the verdict on a loss], or [] where it is not known yet; to be written to."""
    return []


def judge(
    oracle: Oracle, static: StaticLoss, structure: LossStructure, by_differences: bool
) -> Verdict:
    """The verdict on a loss with derivative rules of its own, at the oracle's point.

    ``by_differences``: whether the oracle's products are differences of gradients.
    """
    known = known_verdict(static, by_differences)
    if known:
        return known[0]
    names = ", ".join(structure.custom)
    if structure.precision > SINGLE:
        return Verdict(note=f"custom derivatives ({names}) are not cross-checked below 32 bits")
    verdict = _verdict(cross_check(oracle, structure.precision, by_differences), names)
    if known:  # products could not be made, and are differences from now on
        known[:] = [replace(known[0], asymmetry=verdict.asymmetry)]
        return known[0]
    # Where the gradient vanishes, so do the parts of a product that a rule may have dropped.
    if verdict != Verdict() or float(norm2(oracle.gradient())) > 0.0:
        known[:] = [verdict]
    return verdict


def _verdict(found: CrossCheck, names: str) -> Verdict:
    custom = f"custom derivatives ({names})"
    gradient, bent = found.gradient or 0.0, found.curvature or 0.0
    off = f"{custom} change the gradient by {gradient:.2g} of its size"
    if found.flat or (gradient < APPROXIMATE and bent > CURVED):
        return Verdict(lost=f"{off}, and the curvature by {1.0 if found.flat else bent:.2g}")
    if found.replaced:
        note = f"{off}; the Hessian is the one that they make"
        return Verdict(note=note, asymmetry=found.asymmetry)
    if found.product is None:
        return Verdict(asymmetry=found.asymmetry)
    why = f"{custom} make products that are off by a relative {found.product:.2g}"
    return Verdict(differences=why, asymmetry=found.asymmetry)
