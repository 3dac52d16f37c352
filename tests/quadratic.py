"""A quadratic whose products are costly and counted here, by no code of the library."""

from __future__ import annotations

from typing import Any

import numpy as np

from geodiag.blocks import Array, Blocks, unflatten
from geodiag.oracles import MatrixOracle, MatrixProblem


class Quadratic(MatrixOracle):
    """The Hessian ``H``, seen as ``shapes``, and any gradient (n,); ``asked`` products so far."""

    def __init__(self, H: Array, shapes: Any = None, gradient: Any = None) -> None:
        problem = MatrixProblem(H, shapes)
        self.asked = 0
        super().__init__(self._product, problem.space, free_hvps=False)
        self._matrix_product = problem.apply
        g = np.zeros(problem.space.size) if gradient is None else gradient
        self._own = unflatten(self.space.asarray(g), self.shapes)

    def _product(self, x: Array) -> Array:
        self.asked += 1
        return self._matrix_product(x)

    def loss(self) -> Array:
        return self.space.asarray(0.0)

    def gradient(self) -> Blocks:
        return self._own
