"""Families of optimizers: from their groups and their state to a norm and an update rule."""

from geodiag_torch.optimizers.rules.base import Family, Slot
from geodiag_torch.optimizers.rules.layerwise import MuonDescent, SignDescent, Steepest
from geodiag_torch.optimizers.rules.quadratic import Adaptive, Descent, RootMeanSquare

__all__ = [
    "Adaptive",
    "Descent",
    "Family",
    "MuonDescent",
    "RootMeanSquare",
    "SignDescent",
    "Slot",
    "Steepest",
]
