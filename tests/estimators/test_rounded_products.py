"""Lanczos with products rounded to 16 bits, where the plain recurrence loses its orthogonality."""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from geodiag.core.spaces import Space
from geodiag.oracles import Oracle

SIZE = 400
SPECTRA = [
    (4, 3, 2, 1, 0.5),
    (4, 3.9, 3.8, 3.7, 3.6),
    (4, -4, 3, -3, 1),
    (4, 0.04, 0.03, 0.02, 0.01),
    (4, -8, 3, 1, 0.1),
]


class Rounded(Oracle):
    """½⟨w, V diag(h) Vᵀ w⟩ of rank 5, in float32 with products of ``bits`` significant bits."""

    def __init__(self, bits, h, seed):
        rng = np.random.default_rng(seed)
        self.V, self.h, self.bits = np.linalg.qr(rng.standard_normal((SIZE, 5)))[0], h, bits
        self.space = Space({"x": (SIZE,)}, {}, lambda x: np.asarray(x, dtype=np.float32))
        inside = self.V @ rng.standard_normal(5)
        self.slope = inside if seed % 2 else rng.standard_normal(SIZE)

    @property
    def precision(self):
        return 2.0 ** (1 - self.bits) if self.bits < 24 else 0.0

    def exact(self, d):
        return self.V @ (self.h * (self.V.T @ d))

    def hvp(self, d):
        fraction, exponent = np.frexp(self.exact(d["x"].astype(float)))
        rounded = np.ldexp(np.round(fraction * 2**self.bits) / 2**self.bits, exponent)
        return {"x": rounded.astype(np.float32)}

    def point(self):
        return {"x": np.zeros(SIZE, np.float32)}

    def loss(self):
        return np.float32(0)

    def gradient(self):
        return {"x": self.slope.astype(np.float32)}

    def loss_at(self, params):
        return self.loss()

    def gradient_at(self, params):
        return self.gradient()


@pytest.mark.parametrize("bits", [8, 11, 24])  # bfloat16, float16, float32
def test_few_products_of_a_hessian_of_rank_5_suffice(bits):
    poor = []
    for seed in range(10):
        oracle = Rounded(bits, np.asarray(SPECTRA[seed % 5]), seed)
        for budget in (8, 10, 12, 16, 24, 40):
            d = geodiag.sharpness(oracle, max_hvps=budget).direction["x"].astype(float)
            attained = float(d @ oracle.exact(d)) / 4
            if attained < 0.99:
                poor.append((seed, budget, attained))
    assert not poor
