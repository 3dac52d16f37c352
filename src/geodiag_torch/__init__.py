"""geodiag's PyTorch adapter: measure any ``torch.nn.Module``, and descend in any norm."""

from geodiag_torch import callbacks
from geodiag_torch.attach import attach
from geodiag_torch.optimizer_monitor import OptimizerMonitor
from geodiag_torch.optimizers.non_euclidean import NonEuclideanGD
from geodiag_torch.problem import TorchProblem

__all__ = ["NonEuclideanGD", "OptimizerMonitor", "TorchProblem", "attach", "callbacks"]
