"""Releases: what is built, and with which versions it works."""
