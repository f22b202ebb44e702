"""The update rule."""

from stsbp_spec.models.optim.adamw import (
    AdamW,
    AdamWScalars,
    clip_factor,
    gradient_norm,
    gradient_squares,
    norm_bits,
    norm_of,
)

__all__ = ["AdamW", "AdamWScalars", "clip_factor", "gradient_norm", "gradient_squares", "norm_bits", "norm_of"]
