"""Compilation, fusions, memory layout and threads."""
