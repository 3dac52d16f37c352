"""The norms of the paper and the usual others.

name            norm                 optimizer it belongs to
l2              L2()                 gradient descent: S = λ_max(H)
preconditioned  Preconditioned(P)    preconditioned gradient descent, Adam with fixed √v̂
linf            Linf()               ℓ∞ descent, SignGD
l1              L1()                 coordinate descent
block           SumOver(L2())        block coordinate descent
spectral        Spectral()           spectral descent
muon            Muon()               Muon without momentum
nuclear         Nuclear()            rank-one descent of the best tensor
frobenius       Frobenius()          layerwise normalized descent
rms             RMS()                layerwise RMS-normalized descent
"""

from geodiag.norms.base import Face, Norm, QuadraticNorm
from geodiag.norms.composite import ByParameter, L2Over, MaxOver, Scaled, SumOver
from geodiag.norms.function import FromFunctions
from geodiag.norms.matrix import RMS, Frobenius, Nuclear, Spectral
from geodiag.norms.muon import Muon
from geodiag.norms.quadratic import L2, Preconditioned
from geodiag.norms.stacked import Stacked
from geodiag.norms.vector import L1, Linf

__all__ = [
    "L1",
    "L2",
    "RMS",
    "ByParameter",
    "Face",
    "Frobenius",
    "FromFunctions",
    "L2Over",
    "Linf",
    "MaxOver",
    "Muon",
    "Norm",
    "Nuclear",
    "Preconditioned",
    "QuadraticNorm",
    "Scaled",
    "Spectral",
    "Stacked",
    "SumOver",
]
