"""What every room uses: validation, the measured space, stacked directions, batches, selection."""
