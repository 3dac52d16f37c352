"""Training runs that show the edge of stability: the demo, and the paper's own experiments."""
