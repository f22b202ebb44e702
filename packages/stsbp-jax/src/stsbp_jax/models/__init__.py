"""Neurons and losses as differentiable functions."""
