"""Same seed, same machine, same bits; and what is the exception. See docs/determinism.md."""
