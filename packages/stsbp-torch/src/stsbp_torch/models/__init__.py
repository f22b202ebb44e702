"""Losses as differentiable functions."""
