"""Equations of the spec over time, in JAX."""
