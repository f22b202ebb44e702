"""Compilation, segments of a network, and calls of the host."""
