"""Optimizers in torch: reading their geometry, and non-Euclidean descent."""
