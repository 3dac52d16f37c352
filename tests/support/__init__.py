"""The support matrix: every architecture, engine and precision, measured; see docs/support.md."""
