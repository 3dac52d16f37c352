"""Benchmarks: ``python -m benchmarks`` runs them all; see each module for what it measures."""
