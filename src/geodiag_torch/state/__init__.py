"""What a measurement restores: tensors and modes of modules, random states, pending signals."""
