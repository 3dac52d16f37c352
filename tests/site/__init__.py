"""The documentation site: what can be checked without building it, and its executed pages."""
