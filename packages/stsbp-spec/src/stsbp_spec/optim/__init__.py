"""The update rule."""

from stsbp_spec.optim.adamw import AdamW, AdamWScalars, clip_factor, gradient_norm, norm_bits

__all__ = ["AdamW", "AdamWScalars", "clip_factor", "gradient_norm", "norm_bits"]
