"""Pooling and dropout."""
