"""Parameters in pieces: FSDP2, and operations on sharded tensors."""
