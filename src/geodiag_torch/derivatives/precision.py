"""In which precision a loss is computed: the coarsest between its parameters and its value.

The parameters' own dtypes do not tell: autocast, inside of the model too, and casts of the model's
own (a softmax in float32, a rotary embedding) make it coarser.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geodiag_torch.derivatives.reentrant import NODE


def coarsest(loss: Tensor) -> tuple[float, bool]:
    """The largest relative spacing of any floating tensor that the loss's graph passes through.

    And whether it passes through a reentrant checkpoint, on the same walk.
    """
    nodes = [loss.grad_fn]
    seen = set(nodes)
    seen.add(None)  # edges that lead nowhere
    dtypes, reentrant = {loss.dtype}, False
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        reentrant |= type(node).__name__ == NODE
        for x in getattr(node, "_input_metadata", ()):
            dtypes.add(x.dtype)
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                nodes.append(following)
    eps = max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)
    return eps, reentrant
