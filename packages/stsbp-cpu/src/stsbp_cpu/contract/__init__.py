"""Exact reductions."""
