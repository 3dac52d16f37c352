"""What all other components use: validation, the measured space, stacks, batches, selection."""
