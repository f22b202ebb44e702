"""Equations of the spec over time, on tensors."""
