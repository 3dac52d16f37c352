"""Optimizers in optax: reading their geometry, and non-Euclidean descent."""
