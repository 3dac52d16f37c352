"""In which precision a loss is computed: the coarsest between its parameters and its value.

The parameters' own dtypes do not tell: autocast, inside of the model too, and casts of the model's
own (a softmax in float32, a rotary embedding) make it coarser.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coarsest(loss: Tensor) -> float:
    """The largest relative spacing of any floating tensor that the loss's graph passes through."""
    nodes = [loss.grad_fn]
    seen = set(nodes)
    dtypes = {loss.dtype}
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        dtypes.update(x.dtype for x in getattr(node, "_input_metadata", ()))
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                nodes.append(following)
    return max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)
