"""Quadratic envelopes of norms: what a certificate needs to know of a norm.

Form        one quadratic form P ≻ 0 with ⟨d, Pd⟩ ≤ t·‖d‖²
Envelope    a cone of such forms, and the best of them for given images Hd
Metric      the multiples of one form: ``euclidean(t)`` where ‖d‖₂² ≤ t·‖d‖²
Diagonal    ℓ∞: diagonal forms
TwoSided    the operator norm of a matrix: L⊗I + I⊗R
Product     max over parts
Hull        sum, or ℓ2, over parts
Sliced      those of slices, for the tensors that stack them
"""

from geodiag.envelopes.base import Envelope, Form, Weights
from geodiag.envelopes.joint import Hull, Piece, Product
from geodiag.envelopes.matrix import TwoSided
from geodiag.envelopes.sliced import Sliced
from geodiag.envelopes.vector import Diagonal, Metric, euclidean

__all__ = [
    "Diagonal",
    "Envelope",
    "Form",
    "Hull",
    "Metric",
    "Piece",
    "Product",
    "Sliced",
    "TwoSided",
    "Weights",
    "euclidean",
]
