"""The space of sharded parameters, and the ranks that they are sharded over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from geodiag.blocks import Blocks
from geodiag.core.spaces import Space
from geodiag.errors import ArgumentError, ParameterError
from geodiag_torch.ranks import Alone, ranks_among
from geodiag_torch.sharding.tensors import like, sharded


@dataclass(frozen=True)
class ShardedSpace(Space):
    """A space whose blocks are sharded as the parameters are."""

    # By name, a tensor that is sharded as the parameter is.
    models: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def around(cls, space: Space, params: Mapping[str, Tensor]) -> ShardedSpace:
        """The space whose blocks are sharded as ``params`` are."""
        detached = {name: p.detach() for name, p in params.items()}
        models = {n: sharded(p) if isinstance(p, DTensor) else p for n, p in detached.items()}
        places = {name: partial(_placed, space, model) for name, model in models.items()}
        return cls(space.shapes, space.matrix_view, space.asarray, places, True, models=models)

    def place_blocks(self, blocks: Mapping[str, Any]) -> Blocks:
        """Blocks, sharded as the parameters are."""
        return {name: self.place(name, blocks[name]) for name in self.names}

    def place_all(self, tree: Any) -> Any:
        """All blocks of the space, and stacks of such, in a tree."""

        def is_blocks(x: Any) -> bool:
            tensors = isinstance(x, dict) and all(isinstance(each, Tensor) for each in x.values())
            return tensors and set(x) <= set(self.shapes)

        def placed(x: Any) -> Any:
            return {n: self._block(n, each) for n, each in x.items()} if is_blocks(x) else x

        return tree_map(placed, tree, is_leaf=is_blocks)

    def _block(self, name: str, x: Tensor) -> Tensor:
        lead = x.ndim - len(self.shapes[name])
        fits = lead in (0, 1) and tuple(x.shape[lead:]) == tuple(self.shapes[name])
        return like(x, self.models[name], lead) if fits else x


def _placed(space: Space, model: Tensor, x: Any) -> Tensor:
    return like(space.asarray(x), model)


def ranks_of_mesh(model: nn.Module, group: Any, device: torch.device) -> Alone:
    """The ranks of the mesh that the parameters are sharded over.

    Raises:
        ParameterError: there are several meshes.
        ArgumentError: ``group`` has other ranks.
    """
    meshes = {p.device_mesh for p in model.parameters() if isinstance(p, DTensor)}
    if len(meshes) != 1:
        raise ParameterError(
            "the parameters are sharded over several meshes",
            got=", ".join(map(str, meshes)),
            do="shard the whole model over one mesh",
        )
    (mesh,) = meshes
    own: dist.ProcessGroup | None
    if mesh.ndim == 1:
        own = mesh.get_group()
    elif mesh.size() == dist.get_world_size():
        own = dist.group.WORLD
    else:
        own = mesh._flatten().get_group()
    if group is not None and dist.get_process_group_ranks(group) != mesh.mesh.flatten().tolist():
        raise ArgumentError(
            "process_group= has other ranks than the parameters are sharded over",
            do="leave it out: a module sharded by fully_shard brings its own",
        )
    return ranks_among(own, device)
