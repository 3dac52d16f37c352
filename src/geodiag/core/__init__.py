"""What the rest of the core uses: validation, the measured space, stacks, batches, selection."""
