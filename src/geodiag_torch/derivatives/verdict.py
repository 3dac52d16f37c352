"""What a disagreement of products with differences means, and what is done about it.

A compiled or custom backward pass can make products wrong: then they are replaced by differences. A
detached part of the loss makes the two disagree too, though the product is right: autograd takes it
for a constant. They are compared again with the detached parts held constant.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from geodiag.blocks import Blocks
from geodiag.errors import EngineError, LossError
from geodiag.oracles import Oracle, asymmetry, cross_check
from geodiag_torch.derivatives.crosscheck import Product, disagreement
from geodiag_torch.derivatives.fallback import FallbackProducts
from geodiag_torch.derivatives.stop_gradient import Diverged

HELD = "what is detached in the loss is held constant"
DECLARED = (
    "the gradient is not that of the loss: derivatives are as custom autograd functions or hooks "
    "make them"
)


@dataclass(frozen=True)
class Verdict:
    """What the comparison of products with differences means.

    Attributes:
        wrong: the relative difference, where products are not the derivative of the gradient.
        asymmetry: of the products, relative to their size, where they are not symmetric.
        note: what is to be known of products that are used.
    """

    wrong: float | None = None
    asymmetry: float | None = None
    note: str = ""

    def refuse_wrong(self, do: str) -> None:
        """Raise an EngineError where products are wrong; ``do``: what to do then."""
        if self.wrong is not None:
            raise EngineError(
                "Hessian-vector products disagree with finite differences of the gradient",
                got=f"a relative difference of {self.wrong:.2g}, as a compiled function or a "
                "custom autograd function can make",
                do=do,
            )

    def require_symmetric(self) -> None:
        """Raise an EngineError where products are not symmetric, by any engine."""
        if self.asymmetry is not None:
            raise EngineError(
                "Hessian-vector products are not symmetric, so S is not defined",
                got=f"⟨u, Hv⟩ and ⟨v, Hu⟩ differ by {self.asymmetry:.2g} of their size",
                do="measure a loss whose gradient is not reversed, scaled, clipped or replaced by "
                "custom autograd functions or hooks",
            )


class Judged(Oracle):
    """The loss of a point and its neighbours, with given products at the point."""

    def __init__(
        self, products: FallbackProducts, here: tuple[Tensor, Blocks], hvp: Product
    ) -> None:
        self._products, self._here, self._hvp = products, here, hvp
        self.space = products.space

    def point(self) -> Blocks:
        return self._products.point()

    def loss(self) -> Tensor:
        return self._here[0]

    def gradient(self) -> Blocks:
        return self._here[1]

    def hvp(self, d: Blocks) -> Blocks:
        return self._hvp(d)

    def loss_at(self, params: Blocks) -> Tensor:
        return self._products.pass_at(params)[0]

    def gradient_at(self, params: Blocks) -> Blocks:
        return self._products.pass_at(params)[1]


def hold_detached(products: FallbackProducts, here: tuple[Tensor, Blocks], eps: float) -> bool:
    """Hold constant what is detached, in differences, where they need it; whether they do.

    They do not where the gradient is that of the loss all the same (an activation whose slope is
    computed apart), and differences are symmetric: then they are products with the Hessian of the
    loss. See :meth:`FallbackProducts.detached` for the costs.
    """
    try:
        found = products.detached(here, eps)
    except Diverged:
        return False
    if found is None:
        return False
    constants, moves_loss = found
    free = Judged(products, here, lambda d: products.hvp(d, eps, ()))
    if not moves_loss and asymmetry(free, eps) is None:
        return False
    products.constants = constants
    return True


def judge(
    products: FallbackProducts,
    here: tuple[Tensor, Blocks],
    hvp: Product,
    eps: float,
    custom: bool = False,
) -> Verdict:
    """The verdict on products; ``here``: the loss and its gradient at the point.

    Where the products disagree with differences, and still do with detached parts held constant,
    the gradient is compared with the loss. If it is that of the loss, the products are wrong. If
    not, they are as custom functions or hooks declare them.
    """
    point, gradient = products.point(), here[1]
    found = disagreement(point, gradient, hvp, products.gradient_at, eps, custom)
    if found is None:
        return Verdict()
    if hold_detached(products, here, eps):
        found = disagreement(point, gradient, hvp, products.gradient_at, eps, custom)
        if found is None:
            return Verdict(note=HELD)
    checked = cross_check(Judged(products, here, hvp), eps)
    if not checked.replaced:
        return Verdict(wrong=found)
    if checked.asymmetry is not None:
        return Verdict(asymmetry=checked.asymmetry)
    return Verdict(note=DECLARED)


def refuse_detached(
    products: FallbackProducts, here: tuple[Tensor, Blocks], eps: float, how: str
) -> None:
    """Raise an error where a loss has detached parts; ``how``: ``stop_gradient=`` as it was given.

    Raises:
        LossError: it has.
        EngineError: it cannot be told.
    """
    try:
        found = products.detached(here, eps)
    except Diverged as e:
        raise EngineError(
            "whether parts of the loss are detached cannot be told: passes over it do not compute "
            "the same operations, are in fewer than 32 bits, or fail while they are watched",
            got=f"stop_gradient={how!r}",
            do='pass stop_gradient="constant"',
        ) from e
    if found is not None and how == "error":
        raise LossError(
            "a part of the loss that depends on the parameters is detached from them",
            got='stop_gradient="error"',
            do='pass stop_gradient="constant" to hold it constant',
        )
    if found is not None:
        raise LossError(
            "a part of the loss leaves torch, or is detached in a way that cannot be undone",
            got='stop_gradient="differentiate", which sees through detach(), .data and no_grad()',
            do='pass stop_gradient="constant" to hold it constant',
        )
