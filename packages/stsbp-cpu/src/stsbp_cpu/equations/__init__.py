"""Equations of the spec as machine code."""
