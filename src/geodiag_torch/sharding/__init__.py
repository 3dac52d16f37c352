"""Sharded parameters (FSDP2): gradients through FSDP, and operations on sharded tensors.

detection    whether a model or a tensor is sharded
fsdp         gradients and Hessian-vector products of a module sharded by fully_shard
fsdp_state   what FSDP's passes change, saved and restored
space        the space of sharded blocks
tensors      sharded tensors with the array API of plain ones
operations   the rules by which they compute without gathering
"""
